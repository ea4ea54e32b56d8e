"""Speculation on the native executor changes nothing: ids, logprobs and ends are those of each request alone.

Proposers here are bad on purpose: always wrong, right half of the time, or nearly always. A row more counts as free, so
that they are tried all the time, also in batches, beside chunks of prompts, and when blocks are short.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.core import EngineCore
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.speculation.ngram import NgramProposer
from octavo.speculation.proposer import NOTHING, Proposal, Proposer
from octavo.speculation.suffix import SuffixProposer
from tests import real, tiny
from tests.engine.native_world import Answers, Model, alone, assert_equal, drive, requests

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "stop_token_ids": (17, 30, 99), "min_tokens": 8},
    {"temperature": 1.0, "logit_bias": {5: 4.0, 40: 3.0}, "n": 3},
    {"temperature": 0.9, "top_k": 8, "frequency_penalty": 0.7, "presence_penalty": 0.3, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 5},
    {"temperature": 1.3, "min_p": 0.1, "allowed_token_ids": tuple(range(3, 60)), "prompt_logprobs": 1},
    {"temperature": 0.8, "dry_multiplier": 1.0, "dry_allowed_length": 1, "xtc_probability": 0.5, "typical_p": 0.9},
    {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.5},  # never drafted for
)


def varied(count: int) -> list[Request]:
    """Every parameter that a draft could disturb, over prompts that repeat themselves."""
    source = random.Random(3)
    made = []
    for i in range(count):
        phrase = [source.randrange(3, tiny.VOCAB_SIZE) for _ in range(source.choice((1, 5, 17)))]
        ids = (phrase * 40)[: source.choice((1, 16, 33, 100))]
        params = SamplingParams(max_tokens=30, **KINDS[i % len(KINDS)])
        made.append(Request(f"v{i}", tuple(ids), params, seed=77 + i))
    return made


class Spoiled:
    """Guesses of the true answers, each id right with probability `good`."""

    def __init__(self, wanted: Sequence[Request], truth: Answers, good: float) -> None:
        prompts = {request.request_id: list(request.prompt_ids) for request in wanted}
        self._texts = [prompts[name] + answer.token_ids for (name, _), answer in truth.items()]
        self._good, self._random = good, random.Random(5)

    def propose(self, ids: Sequence[int], limit: int) -> Proposal:
        """From the first text that begins like `ids`; of several choices that is often the wrong one."""
        for text in self._texts:
            if len(text) > len(ids) and text[: len(ids)] == ids:
                right = text[len(ids) : len(ids) + self._random.randrange(1, limit + 1)]
                made = [i if self._random.random() < self._good else (i + 1) % 288 for i in right]
                return Proposal(made, self._random.choice((1, 3, 20)))
        return NOTHING


class World:
    """A model, requests, and their answers alone without speculation."""

    def __init__(self, model: Model, wanted: list[Request]) -> None:
        self.model, self.wanted = model, wanted
        self.truth = alone(model, wanted, run_ahead=1, prefix_caching=False)

    def spoiled(self, good: float) -> partial[Proposer]:
        return partial(Spoiled, self.wanted, self.truth, good)

    def engine(self, proposer: Any, **scheduler: Any) -> EngineCore:
        return self.model.engine(proposer=proposer, **scheduler)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return tiny.gguf_file(folder / "tiny.gguf", tiny.config(num_attention_heads=6, num_key_value_heads=2))


@pytest.fixture(scope="module")
def world(file: Path) -> World:
    model = Model(file, kv_bytes=4 << 20, max_seqs=8)  # more at once would not draft
    return World(model, requests(tiny.VOCAB_SIZE, 10, longest=200) + varied(15))


@pytest.mark.parametrize("good", [0.0, 0.5, 0.9, 1.0])
def test_any_guess_gives_the_same_answer(world: World, good: float) -> None:
    core = world.engine(world.spoiled(good))
    assert_equal(drive(core, world.wanted), world.truth)
    stats = core.stats()
    assert stats.drafts > 0 and stats.accepted_tokens <= stats.draft_tokens
    assert good < 1.0 or stats.accepted_tokens > stats.draft_tokens / 2


@pytest.mark.parametrize("seed", range(2))
def test_beside_chunks_arrivals_and_prefix_hits(world: World, seed: int) -> None:
    """Chunks of 40 rows beside drafts, arrivals between, blocks of 32; then the same again over a warm cache."""
    core = world.engine(world.spoiled(0.8), max_batched_tokens=40, block_size=32)
    for turn in "ab":
        again = [replace(request, request_id=request.request_id + turn) for request in world.wanted]
        found = drive(core, again, stagger=random.Random(seed))
        assert_equal({(name[:-1], choice): answer for (name, choice), answer in found.items()}, world.truth)
    assert core.stats().hit_tokens > 0


def test_when_blocks_are_short(file: Path) -> None:
    """2,048 tokens for eight requests of up to 450: preemption and eviction while drafts reserve blocks."""
    wanted = requests(tiny.VOCAB_SIZE, 12, longest=300, shortest=200, answer=150)
    world = World(Model(file, kv_dtype="float32", kv_bytes=16 << 20), wanted)
    core = Model(file, kv_dtype="float32", kv_bytes=1 << 20, max_seqs=8).engine(proposer=world.spoiled(0.9))
    assert_equal(drive(core, wanted), world.truth)
    assert core.stats().preemptions > 0 and core.stats().accepted_tokens > 0


@pytest.mark.parametrize("method", [partial(NgramProposer, 2, 8), SuffixProposer])
def test_methods(world: World, method: Any) -> None:
    core = world.engine(method)
    assert_equal(drive(core, world.wanted), world.truth)
    assert core.stats().drafts > 0


def test_smollm2_copies_a_list() -> None:
    """The real model goes on with a list that repeats: most guesses are right, greedy and sampled."""
    model = Model(real.model("smollm2-135m-instruct"), kv_bytes=64 << 20, max_model_len=1024)
    phrase = [253, 1789, 28, 732, 30, 198]
    wanted = [
        Request("greedy", tuple(phrase * 12), SamplingParams(temperature=0.0, max_tokens=48, logprobs=1), seed=1),
        Request("sampled", tuple(phrase * 9), SamplingParams(temperature=0.7, max_tokens=48, logprobs=1, n=2), seed=2),
    ]
    truth = alone(model, wanted)
    core = model.engine(proposer=SuffixProposer)
    assert_equal(drive(core, wanted), truth)
    stats = core.stats()
    assert stats.accepted_tokens > stats.draft_tokens / 2 and stats.accepted_tokens > 40
