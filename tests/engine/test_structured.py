"""Constrained answers through the whole engine: valid or cut off by length, and the same ids however they are made.

The model has random weights and steps of a fraction of a millisecond, so that masks are late all the time. Varied are
batch, chunks, blocks (preemption), cached prefixes, drafts of others, choices, a new engine that goes on, and the death
of the grammar process.
"""

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from octavo.engine.core import EngineCore
from octavo.engine.grammars import Grammars
from octavo.errors import InvalidRequest, OctavoError
from octavo.request import Request, Resume
from octavo.sampling_params import SamplingParams
from octavo.speculation.suffix import SuffixProposer
from octavo.structured_outputs import StructuredOutputsParams
from octavo.tokenizer.tokenizer import Tokenizer
from tests import tiny
from tests.engine.harness import items
from tests.engine.native_world import Answers, Model, drive
from tests.grammar import random_schemas

ENDS = (2, 0)
COUNT = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("structured") / "model"
    return Model(tiny.folder(folder), max_model_len=256)


@pytest.fixture(scope="module")
def tokenizer(model: Model) -> Tokenizer:
    return Tokenizer.from_folder(model.path)


@pytest.fixture
def engines(model: Model) -> Iterator["Engines"]:
    made = Engines(model)
    yield made
    made.close()


class Engines:
    """Makes engines, and ends them with their grammar processes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._made: list[EngineCore] = []

    def __call__(self, **scheduler: object) -> EngineCore:
        made = self._model.engine(**{"eos_ids": ENDS, **scheduler})
        self._made.append(made)
        return made

    def close(self) -> None:
        for core in self._made:
            core.close()


def requests(seed: int = 0, count: int = COUNT) -> list[Request]:
    """Constrained and free ones, greedy and sampled, with common beginnings, penalties, logprobs and n = 2."""
    source = random.Random(seed)
    shared = tuple(source.randrange(3, 270) for _ in range(40))
    made = []
    for at in range(count):
        asked = None
        if at % 6:
            asked = random_schemas.other(source) if at % 5 == 0 else None
            asked = asked or StructuredOutputsParams(json=random_schemas.schema(source))
        params = SamplingParams(
            temperature=0 if at % 3 == 0 else 1.0, max_tokens=source.choice([20, 60, 100]), n=1 + (at % 8 == 3),
            logprobs=2 if at % 7 == 2 else None, presence_penalty=0.5 * (at % 4 == 1), top_k=40 * (at % 4 == 2),
            structured_outputs=asked, min_tokens=3 * (at % 9 == 4),
        )  # fmt: skip
        own = tuple(source.randrange(3, 270) for _ in range(source.randrange(1, 30)))
        made.append(Request(f"r{at}", shared[: source.choice([0, 16, 40])] + own, params, seed=100 + at))
    return made


def alone(engines: Engines, wanted: list[Request]) -> Answers:
    core = engines()
    found: Answers = {}
    for each in wanted:
        found |= drive(core, [each])
    return found


def check(wanted: list[Request], answers: Answers, tokenizer: Tokenizer) -> int:
    """Every answer is valid or was cut off; how many came to their end."""
    ended = 0
    for each in wanted:
        for choice in range(each.params.n):
            answer = answers[each.request_id, choice]
            asked = each.params.structured_outputs
            assert answer.finish in ("stop", "length")
            if asked is not None and answer.finish == "stop":
                text = tokenizer.decode(answer.token_ids[:-1])
                assert answer.token_ids[-1] in ENDS and random_schemas.is_valid(asked, text), (asked, text)
                ended += 1
    return ended


def test_answers_are_valid_and_the_same_alone_and_together(engines: Engines, tokenizer: Tokenizer) -> None:
    wanted = requests()
    right = alone(engines, wanted)
    assert check(wanted, right, tokenizer) > 10
    assert drive(engines(), wanted) == right
    assert drive(engines(max_batched_tokens=40), wanted, stagger=random.Random(1)) == right
    cached = engines()
    drive(cached, wanted)
    assert drive(cached, [replace(each, request_id=f"{each.request_id}-again") for each in wanted]) == {
        (f"{name}-again", choice): answer for (name, choice), answer in right.items()
    }
    assert cached.scheduler.counters.hit_tokens > 0


def test_others_may_guess(engines: Engines) -> None:
    wanted = requests(seed=3)
    core = engines(proposer=SuffixProposer, draft_tokens=4)
    assert drive(core, wanted, stagger=random.Random(2)) == alone(engines, wanted)
    assert core.stats().draft_tokens > 0


@pytest.fixture
def crowded(model: Model) -> Iterator["Engines"]:
    """So few blocks (4,096 tokens) that answers of some length are begun anew, from the ids that they have."""
    made = Engines(replace(model, kv_bytes=1 << 20, max_seqs=COUNT))
    yield made
    made.close()


def test_preempted_sequences_get_their_masks_again(engines: Engines, crowded: Engines) -> None:
    long = StructuredOutputsParams(json={"type": "array", "items": {"enum": [1, "ab"]}, "minItems": 90, "maxItems": 90})
    wanted, source = [], random.Random(4)
    for at, each in enumerate(requests(seed=4)):
        asked = long if at % 4 else each.params.structured_outputs
        params = replace(each.params, max_tokens=130, min_tokens=0, n=1, structured_outputs=asked)
        wanted.append(replace(each, prompt_ids=tuple(source.choices(range(3, 270), k=120)), params=params))
    right, core = alone(engines, wanted), crowded()
    assert drive(core, wanted) == right
    assert core.stats().preemptions > 0


def grammars(core: EngineCore) -> Grammars:
    found = core.constraints._grammars
    assert found is not None
    return found


def process(core: EngineCore) -> int:
    """The id of its grammar process."""
    child = grammars(core)._child
    assert child is not None
    return child.pid


class Driven:
    """Requests on an engine, step by step."""

    def __init__(self, core: EngineCore, wanted: list[Request]) -> None:
        self.core = core
        self.ids: dict[tuple[str, int], list[int]] = {}
        self.ended: dict[tuple[str, int], str] = {}
        self.errors: dict[str, str] = {}
        self.refused: dict[str, OctavoError] = {}
        for each in wanted:
            core.submit(each)

    def turn(self) -> None:
        self.refused.update(self.core.settle())
        for output in items(self.core.step()):
            self.ids.setdefault((output.request, output.choice), []).extend(output.token_ids)
            if output.finish is not None:
                self.ended[output.request, output.choice] = str(output.finish)
            if output.error is not None:
                self.errors[output.request] = output.error

    @property
    def busy(self) -> bool:
        return self.core.has_work or self.core.constraints.waits

    def finish(self) -> "Driven":
        while self.busy:
            self.turn()
        return self


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_grammar_process_dies_or_stops(engines: Engines, number: signal.Signals) -> None:
    """Others go on meanwhile; those that it worked for go on with the next one, but for the one that it was at."""
    wanted = requests(seed=5)
    right = alone(engines, wanted)
    driven = Driven(engines(), wanted)
    for _ in range(6):
        driven.turn()
    while driven.core.constraints.waits:
        driven.turn()
    os.kill(process(driven.core), number)
    if number == signal.SIGSTOP:
        free = [each for each in wanted if each.params.structured_outputs is None]
        while not all((each.request_id, 0) in driven.ended for each in free):
            driven.turn()
        os.kill(process(driven.core), signal.SIGKILL)
    driven.finish()
    for key, answer in right.items():
        if key[0] not in driven.errors:
            assert driven.ids[key] == answer.token_ids and driven.ended[key] == answer.finish
    assert len(driven.errors) <= 1 and not driven.refused


def test_a_new_engine_goes_on(engines: Engines) -> None:
    """What the front does when an engine died: it sends every request again, with the ids that it has."""
    wanted = requests(seed=6)
    right = alone(engines, wanted)
    for steps in (1, 12, 30):
        first = Driven(engines(), wanted)
        while first.core.constraints.waits:
            first.turn()
        for _ in range(steps):
            first.turn()
        open_ = [each for each in wanted if any((each.request_id, c) not in first.ended for c in range(each.params.n))]
        again = []
        for each in open_:
            ids = [tuple(first.ids.get((each.request_id, c), ())) for c in range(each.params.n)]
            again.append(replace(each, resume=tuple(Resume(c, got) for c, got in enumerate(ids) if got)))
        second = Driven(engines(), again).finish()
        for (name, choice), answer in right.items():
            if (name, choice) in first.ended:
                assert first.ids[name, choice] == answer.token_ids
            else:
                assert first.ids.get((name, choice), []) + second.ids[name, choice] == answer.token_ids
                assert second.ended[name, choice] == answer.finish


def simple(name: str, asked: StructuredOutputsParams | None, **params: object) -> Request:
    made = SamplingParams(**{"temperature": 0, "max_tokens": 30, **params}, structured_outputs=asked)
    return Request(name, (5, 6, 7), made, seed=1)


DEAD_END = StructuredOutputsParams(choice=["abc"])


def test_no_token_may_follow(engines: Engines, tokenizer: Tokenizer) -> None:
    """Only that request ends with an error; its neighbours do not notice."""
    (a,) = tokenizer.encode("a")
    wanted = [
        simple("free", None, ignore_eos=True), simple("fine", StructuredOutputsParams(regex="[a-z]{9}")),
        simple("dead", DEAD_END, allowed_token_ids=[a, 2]), simple("late", DEAD_END, bad_words=["c"]),
    ]  # fmt: skip
    wanted[3] = replace(wanted[3], bad_word_ids=((tokenizer.encode("c")[0],),))
    right = alone(engines, wanted[:2])
    driven = Driven(engines(), wanted).finish()
    assert set(driven.errors) == {"dead", "late"} and all("no token" in each for each in driven.errors.values())
    for (name, choice), answer in right.items():
        assert driven.ids[name, choice] == answer.token_ids
    assert tokenizer.decode(driven.ids["dead", 0]) == "a" and driven.ended["dead", 0] == "error"


def test_min_tokens_gives_way_to_the_end(engines: Engines, tokenizer: Tokenizer) -> None:
    """Where the constraint is fulfilled and nothing may follow, min_tokens has no say; else it has."""
    driven = Driven(
        engines(),
        [
            simple("short", StructuredOutputsParams(choice=["ab"]), min_tokens=20),
            simple("long", StructuredOutputsParams(regex="[ab]*"), min_tokens=20),
        ],
    ).finish()
    assert tokenizer.decode(driven.ids["short", 0][:-1]) == "ab" and driven.ended["short", 0] == "stop"
    assert len(driven.ids["long", 0]) >= 20


def test_what_cannot_be_compiled_is_refused(engines: Engines) -> None:
    core = engines()
    driven = Driven(
        core,
        [
            simple("not", StructuredOutputsParams(json={"not": {}}, asked_as="response_format")),
            simple("same", StructuredOutputsParams(json={"not": {}}, asked_as="guided_json")),
            simple("fine", StructuredOutputsParams(choice=["a"])),
        ],
    ).finish()
    assert {name: error.param for name, error in driven.refused.items()} == {
        "not": "response_format",
        "same": "guided_json",
    }
    assert all(error.message.startswith(str(error.param)) for error in driven.refused.values())
    assert driven.ended == {("fine", 0): "stop"}
    assert not grammars(core)._keys and not grammars(core)._asked


def test_requests_that_wait_can_be_aborted(engines: Engines) -> None:
    core = engines()
    driven = Driven(core, [simple("a", DEAD_END, n=2), simple("b", DEAD_END)])
    core.abort("a")
    driven.finish()
    assert driven.ended == {("a", 0): "abort", ("a", 1): "abort", ("b", 0): "stop"}


SLOW = "\n".join(["start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(60)), 'T60: "a"'])


def test_a_constraint_that_takes_too_long(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is replaced, the constraint refused now and later, and the others' answers are what they were."""
    others = requests(seed=7, count=8)
    right = alone(engines, others)
    core = engines()
    driven = Driven(core, others)
    while core.constraints.waits:
        driven.turn()
    before = process(core)
    monkeypatch.setattr("octavo.engine.grammars.COMPILE_SECONDS", 0.0)
    slow = simple("slow", StructuredOutputsParams(grammar=SLOW))
    core.submit(slow)
    while "slow" not in driven.refused:
        driven.turn()
    assert driven.refused["slow"].code == "grammar_compile_timeout" and process(core) != before
    with pytest.raises(InvalidRequest) as caught:
        core.submit(replace(slow, request_id="again"))
    assert caught.value.code == "grammar_compile_timeout"
    monkeypatch.undo()
    driven.finish()
    for key, answer in right.items():
        assert driven.ids[key] == answer.token_ids or key[0] in driven.errors
    assert len(driven.errors) <= 1


def test_nothing_is_left(engines: Engines) -> None:
    core = engines()
    Driven(core, requests(seed=8, count=10)).finish()
    kept = grammars(core)
    assert not (kept._waiting or kept._keys or kept._asked)
    assert all(sequence.slot != slot for slot, sequence in kept._slots.items())  # closed with the next step
    assert core.roster.constrained == 0 and not core.roster.late
    pid = process(core)
    core.close()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
