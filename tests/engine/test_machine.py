"""Cache and scheduler against a brute-force model: random operations, every invariant after each of them.

What must hold is in harness.py (blocks, slots, places, the prefix tree, progress) and scripted_runner.py (each key that
a row sees is the right one, computed once); what each request must give is computed alone: no batch, cache or chunks.
"""

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from octavo.engine.cache_groups import page_operations
from octavo.engine.cost_model import CostModel, TimedStep
from octavo.engine.prefix_cache import PrefixCache
from octavo.engine.queue import RequestQueue
from octavo.engine.roster import SchedulerConfig
from octavo.errors import ConfigError, InvalidRequest, QueueFull
from octavo.request import Request, Resume
from octavo.sampling_params import SamplingParams
from tests.engine.harness import EOS, Harness
from tests.engine.scripted_runner import alone, make_facts

VOCAB = 24
BASES = tuple(tuple(random.Random(base).randrange(VOCAB) for _ in range(256)) for base in range(3))

PROMPTS = st.builds(
    lambda base, length, tail: BASES[base][:length] + tuple(tail),
    st.integers(0, 2), st.integers(0, 150), st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4),
)  # fmt: skip
PARAMS = st.fixed_dictionaries(
    {
        "n": st.sampled_from((1, 1, 1, 2, 5)),
        "max_tokens": st.sampled_from((None, 1, 2, 5, 30)),
        "ignore_eos": st.booleans(),
        "min_tokens": st.integers(0, 1),
        "logprobs": st.sampled_from((None, 2)),
        "prompt_logprobs": st.sampled_from((None, None, 0)),
        "stop_token_ids": st.sampled_from(((), (3, 4))),
    }
)


class EngineMachine(RuleBasedStateMachine):
    """One engine under random requests, aborts, stopped steps and resets."""

    requests: Bundle[str] = Bundle("requests")
    operations = 0  # of all examples, counted where the invariants are checked

    @initialize(
        windows=st.sampled_from(((0,), (0,), (0, 40), (24,), (0, 16, 64))),
        pages=st.sampled_from((17, 26, 50, 120)),
        block=st.sampled_from((16, 32, 64)),
        shape=st.tuples(st.sampled_from((40, 64, 128)), st.sampled_from((2, 4, 8))),
        rates=st.tuples(st.sampled_from((0.0, 0.0, 0.1)), st.sampled_from((0.0, 0.3))),
        guesses=st.sampled_from((None, 0.0, 0.5, 0.9, 1.0)),
        config=st.fixed_dictionaries(
            {
                "max_queued": st.sampled_from((0, 3, 50)),
                "step_seconds": st.sampled_from((0.001, 0.01, 0.1)),
                "prefix_caching": st.sampled_from((True, True, True, False)),
                "run_ahead": st.sampled_from((1, 2, 8)),
                "patience": st.sampled_from((0.0, 60.0)),
            }
        ),
    )
    def build(self, windows, pages, block, shape, rates, guesses, config):
        pages = 1 + (pages - 1) * len(windows) * max(1, block // 32)
        facts = make_facts(pages=pages, windows=windows, max_rows=shape[0], max_seqs=shape[1])
        self.world = Harness(
            facts, stop_rate=rates[0], leave_rate=rates[1], guesses=guesses, block_size=block, **config
        )  # fmt: skip

    @rule(target=requests, prompt=PROMPTS, params=PARAMS, priority=st.sampled_from((0, 0, 1, -1)),
          keys=st.sampled_from((("", ("", 1.0)), ("", ("x", 3.0)), ("salt", ("y", 0.5)))),
          poison=st.integers(0, 19))  # fmt: skip
    def submit(self, prompt, params, priority, keys, poison):
        prompt = prompt[: self.world.core.roster.max_model_len - 1]
        made = self.world.submit(prompt, priority=priority, salt=keys[0], tenant=keys[1], poison=poison == 0, **params)
        return multiple() if made is None else made

    @rule(request=requests, choice=st.sampled_from((None, 0, 1)))
    def abort(self, request, choice):
        self.world.abort(request, choice)

    @rule(request=requests)
    def abort_while_a_step_runs(self, request):
        self.world.step_with_aborts([request])

    @rule(steps=st.integers(1, 4))
    def step(self, steps):
        for _ in range(steps):
            self.world.step()

    @rule(lot=st.integers(0, 9))
    def reset(self, lot):
        if lot == 0:
            self.world.core.reset_prefix_cache()

    @invariant()
    def holds(self):
        if hasattr(self, "world"):
            EngineMachine.operations += 1
            self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()
            self.world.step()
            self.world.check_idle()


def machine_settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_random_operations():
    """Some thousand operations; the full run is below."""
    run_state_machine_as_test(EngineMachine, settings=machine_settings(120, 50))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hundred_thousand_operations():
    """Counted, not hoped for: hypothesis may end an example early."""
    EngineMachine.operations = 0
    while EngineMachine.operations < 100_000:
        run_state_machine_as_test(EngineMachine, settings=machine_settings(500, 50))
    print(f"{EngineMachine.operations:,} operations")


# The parts whose behaviour the machine cannot see from outside


def test_equal_prompts_share_blocks_and_salts_do_not():
    world = Harness(make_facts(max_model_len=160), block_size=16)
    prompt = BASES[0][:100]
    world.submit(prompt, max_tokens=2)
    world.drain()
    for salt, cached in (("", 96), ("other", 0), ("", 96)):
        name = world.submit(prompt, salt=salt, max_tokens=2)
        world.drain()
        assert world.books[name].prompt.cached_tokens == cached


@pytest.mark.parametrize("block", [16, 32, 64])
def test_a_window_needs_only_its_last_blocks_for_a_hit(block):
    """Sliding layers lose blocks out of the window; a hit asks for what the next row sees, nothing more."""
    world = Harness(make_facts(pages=200, windows=(0, 32), max_model_len=160, max_rows=64), block_size=block)
    for _ in range(2):
        name = world.submit(BASES[1][:130], max_tokens=20, ignore_eos=True)
        world.drain()
    assert world.books[name].prompt.cached_tokens == 128 // block * block


def test_choices_share_the_prompt():
    """n = 5: the prompt is computed once, each other choice recomputes one row and owns the last block alone."""
    world = Harness(make_facts(pages=200, max_rows=128), block_size=16, prefix_caching=False, run_ahead=1)
    world.submit(BASES[0][:100], n=5, max_tokens=8, ignore_eos=True)
    world.drain()
    assert world.core.scheduler.counters.forks == 4
    assert world.runner.rows == 100 + 4 + 5 * 7  # the first of eight ids comes from a prompt row


def test_prompt_logprobs_take_no_hit_of_rows_that_they_need():
    world = Harness(make_facts(), block_size=16)
    prompt = BASES[2][:90]
    world.submit(prompt, max_tokens=1)
    world.drain()
    name = world.submit(prompt, max_tokens=1, prompt_logprobs=0)  # the harness compares every value
    world.drain()
    assert world.books[name].prompt.cached_tokens == 0
    assert len(world.books[name].prompt.prompt_logprobs) == 89


def test_a_collision_never_serves_a_foreign_prefix(monkeypatch):
    """All keys equal: every lookup collides; the ids are compared, so only equal prefixes are shared."""
    monkeypatch.setattr(PrefixCache, "chain_key", lambda self, parent, ids: b"x" * 16)
    world = Harness(make_facts(pages=200), block_size=16)
    for base in (0, 1, 0, 2, 1):
        world.submit(BASES[base][:70], max_tokens=5)
        world.drain()
        world.check()


def test_keys_depend_on_everything_that_the_kv_depends_on():
    facts = make_facts(windows=(0, 16))
    caches = [
        PrefixCache(b"a" * 32, "f", facts.groups, 16, 10),
        PrefixCache(b"b" * 32, "f", facts.groups, 16, 10),
        PrefixCache(b"a" * 32, "g", facts.groups, 16, 10),
        PrefixCache(b"a" * 32, "f", facts.groups[:1], 16, 10),
    ]
    roots = [cache.root_key("") for cache in caches]
    roots += [caches[0].root_key("s"), caches[0].root_key("", b"s"), caches[0].root_key("", b"", b"s")]
    ids = BASES[0][:16]
    keys = {cache.chain_key(root, ids) for cache, root in zip(caches * 2, roots, strict=False)}
    assert len(set(roots)) == len(roots) == len(keys)
    assert caches[0].chain_key(roots[0], ids) != caches[0].chain_key(roots[0], ids[:-1] + (ids[-1] + 1,))
    wide = PrefixCache(b"a" * 32, "f", facts.groups, 64, 10)  # hashing is at 16 ids whatever the block size
    key = roots[0]
    for start in range(0, 64, 16):
        key = caches[0].chain_key(key, BASES[0][start : start + 16])
    assert wide.chain_key(roots[0], BASES[0][:64]) == key


def test_resumed_choices_go_on_where_they_were():
    world = Harness(make_facts())
    prompt = BASES[0][:40]
    name = world.submit(prompt, n=3, max_tokens=20, ignore_eos=True, seed=77)
    world.drain()
    whole = [ids for ids, _ in world.books[name].expected]
    resume = (Resume(0, tuple(whole[0][:7])), Resume(2, tuple(whole[2][:12])))
    again = world.submit(prompt, n=3, max_tokens=20, ignore_eos=True, seed=77, resume=resume)
    world.drain()
    assert [world.books[again].answers[choice] for choice in range(3)] == whole


def test_run_ahead_stops_for_whoever_could_come_in():
    """K follows the predicted time, and is 1 while someone waits that a step could admit."""
    world = Harness(make_facts(max_seqs=2), run_ahead=8)
    world.core.setup.cost.fixed, world.core.setup.cost.per_row = 1e-3, 1e-4

    def loop() -> int:
        world.step()
        return world.runner.steps[-1].loop

    world.submit(BASES[0][:20], max_tokens=100, ignore_eos=True)
    assert [loop() for _ in range(3)] == [1, 8, 8]
    world.submit(BASES[1][:20], max_tokens=100, ignore_eos=True)
    assert loop() == 1  # its prompt
    assert loop() == 8
    world.submit(BASES[2][:20], max_tokens=100, ignore_eos=True)
    assert loop() == 8  # no slot is free: only the end of a sequence lets it in, and that ends the loop
    world.core.setup.cost._ratio[0] = 40.0
    assert loop() == 1
    world.drain()


def test_priorities_and_fair_shares():
    clock = [0.0]
    world = Harness(make_facts(max_seqs=1, max_rows=64))
    world.core.roster.clock = lambda: clock[0]
    served: list[str] = []
    names = {}
    names[world.submit(BASES[0][:10], max_tokens=4, ignore_eos=True)] = "first"
    world.step()
    for i in range(4):
        for tenant in ("a", "b"):
            whose = (tenant, 2.0 if tenant == "b" else 1.0)
            names[world.submit(BASES[1][i : i + 10], max_tokens=10, tenant=whose, ignore_eos=True)] = tenant
    names[world.submit(BASES[1][:10], max_tokens=10, priority=-1, tenant=("a", 1.0), ignore_eos=True)] = "urgent"
    while world.core.has_work:
        served += [names[o.request] for o in world.step() if o.finish]
    assert served[:2] == ["first", "urgent"]
    assert served[2:8].count("b") == 4 and served[8:] == ["a", "a"]  # weight 2: two of b for one of a


def test_nobody_waits_for_ever_behind_urgent_requests():
    clock = [0.0]
    world = Harness(make_facts(max_seqs=1, max_rows=64), patience=60.0)
    world.core.roster.clock = lambda: clock[0]
    humble = world.submit(BASES[0][:20], max_tokens=5, priority=5, ignore_eos=True)
    for turn in range(200):
        clock[0] += 1.0
        if len(world.core.roster.queue) < 5:
            world.submit(BASES[1][: 10 + turn % 50], max_tokens=5, priority=0, ignore_eos=True)
        world.step()
    assert world.books[humble].finishes
    world.drain()


def test_a_long_prompt_leaves_time_to_short_ones():
    """One long prefill and 60 short requests behind it: each short one has its first id long before the long one."""
    world = Harness(make_facts(pages=400, max_rows=128, max_seqs=16, max_model_len=3000), step_seconds=0.02)
    long = world.submit(tuple(BASES[0] * 11), max_tokens=1)
    short = [world.submit(BASES[1][i : i + 20], max_tokens=1) for i in range(60)]
    ended: list[str] = []
    while world.core.has_work:
        ended += [o.request for o in world.step() if o.finish]
    assert ended.index(long) > len(short) // 2
    assert ended != short + [long] or len(ended) == 61


def test_queue_is_bounded():
    world = Harness(make_facts(max_seqs=2), max_queued=3)
    assert all(world.submit(BASES[0][:50], max_tokens=5) for _ in range(5))  # two slots and three places
    assert world.submit(BASES[0][:50]) is None and world.refused == 1
    world.drain()
    assert world.submit(BASES[0][:50], max_tokens=1)
    world.drain()
    with pytest.raises(QueueFull, match="max-num-queued-reqs 0"):
        RequestQueue(0).check_room(0, Request("r", (1,), SamplingParams(), 0))


def test_requests_that_cannot_run_are_refused():
    world = Harness(make_facts(pages=6, max_model_len=160))  # 80 tokens of memory
    assert world.core.info.max_model_len == 80
    with pytest.raises(InvalidRequest):
        world.submit(tuple(range(1, 20)) * 5)
    with pytest.raises(InvalidRequest):
        world.submit(())
    with pytest.raises(InvalidRequest):
        world.submit((VOCAB,))
    name = world.submit((1,) * 79, max_tokens=None)  # to the end of what fits, not of the model's context
    world.drain()
    assert len(world.books[name].answers[0]) == 1
    with pytest.raises(ConfigError):
        Harness(make_facts(pages=1))


def test_page_operations_bound_a_step():
    facts = make_facts(pages=400, windows=(0, 16), max_rows=64, max_seqs=8)
    world = Harness(facts, block_size=64)
    bound = page_operations(facts, 64)
    for i in range(40):
        world.submit(BASES[i % 3][: 20 + i], n=3, max_tokens=6)
    while world.core.has_work:
        world.step()
        step = world.runner.steps[-1]
        assert len(step.zero_pages) <= bound and len(step.copy_pages) <= bound


def test_cost_model_finds_its_coefficients():
    def seconds(rows: int, keys: int) -> float:
        return 2e-3 + 1e-4 * rows + 1e-7 * keys

    shapes = ((1, 10), (32, 600), (64, 5000), (128, 30000), (1, 2000))
    model = CostModel.fitted([TimedStep(rows, keys, seconds(rows, keys)) for rows, keys in shapes])
    assert model.predict(200, 10_000, True) == pytest.approx(seconds(200, 10_000), rel=1e-6)
    rows = model.rows_within(0.05, start=1000)
    assert model.prefill_seconds(rows, 1000) == pytest.approx(0.05, rel=0.02)
    for _ in range(60):
        model.observe(8, 800, False, 3 * seconds(8, 800))
    assert model.predict(8, 800, False) == pytest.approx(3 * seconds(8, 800), rel=0.02)
    assert model.predict(8, 800, True) == pytest.approx(seconds(8, 800), rel=1e-6)


def test_alone_is_what_it_says():
    """The oracle itself: greedy repetition gives the same, seeds and choices differ, limits hold."""
    world = Harness()
    name = world.submit(BASES[0][:9], n=2, max_tokens=15, ignore_eos=True)
    request = world.books[name].request
    first, second = alone(request, VOCAB, EOS, 160)
    assert first != second and len(first[0]) == len(second[0]) == 15
    assert alone(replace(request, seed=request.seed + 1), VOCAB, EOS, 160)[0] != first
    assert SchedulerConfig().block_size == 16
    world.drain()
