"""The real engine core on the native executor, driven step by step: what the invariance suite varies."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.config import EngineConfig
from octavo.engine import startup
from octavo.engine.core import EngineCore, EngineSetup
from octavo.engine.cost_model import CostModel
from octavo.engine.grammars import GrammarSetup
from octavo.engine.roster import SchedulerConfig
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from tests.engine.harness import items

SECRET = b"s" * 32


@dataclass
class Answer:
    """Everything about a choice that must not depend on how it was computed."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] | None = None
    finish: str | None = None


Answers = dict[tuple[str, int], Answer]


@dataclass
class Model:
    """A loaded model, and engines over it with different schedulers."""

    path: Path
    isa: str = "auto"
    threads: int = 2
    kv_dtype: str = "bf16"
    max_rows: int = 128
    max_seqs: int = 16
    kv_bytes: int = 64 << 20
    max_model_len: int | None = None
    quantization: str = "auto"

    def __post_init__(self) -> None:
        folder = self.folder = self.path.parent / "octavo-cache"
        config = EngineConfig(
            threads=self.threads, isa=self.isa, kv_cache_dtype=self.kv_dtype, max_num_batched_tokens=self.max_rows,
            max_num_seqs=self.max_seqs, kv_cache_memory=self.kv_bytes, max_model_len=self.max_model_len,
            quantization=self.quantization, cache_dir=str(folder), state_dir=str(folder),
        )  # fmt: skip
        self.loaded = startup.load_model(self.path, config)

    def engine(self, **scheduler: Any) -> EngineCore:
        """A fresh engine (empty cache) over the same weights. With a proposer a row more counts as free."""
        settings = {"secret": SECRET, "max_batched_tokens": self.max_rows, "step_seconds": 10.0, **scheduler}
        cost = CostModel()
        cost.tabulate({1: 1e-3, 2: 1e-3})
        grammars = GrammarSetup(str(self.path), str(self.folder), self.loaded.executor.watch_masks)
        setup = EngineSetup(self.loaded.runner, SchedulerConfig(**settings), "test", cost, grammars=grammars)
        return EngineCore(setup)


def drive(core: EngineCore, requests: Iterable[Request], *, stagger: random.Random | None = None) -> Answers:
    """Run requests to their end. stagger: arrivals spread over the steps, in the given order."""
    answers: Answers = {}
    waiting = list(requests)
    while waiting or core.has_work or core.constraints.waits:
        while waiting and (stagger is None or not core.has_work or stagger.random() < 0.4):
            core.submit(waiting.pop(0))
        for _, error in core.settle():
            raise error
        for output in items(core.step()):
            answer = answers.setdefault((output.request, output.choice), Answer())
            assert output.index == len(answer.token_ids)
            answer.token_ids += output.token_ids
            answer.logprobs += output.logprobs or []
            if output.prompt is not None and output.prompt.prompt_logprobs is not None:
                answer.prompt_logprobs = output.prompt.prompt_logprobs
            if output.finish is not None:
                answer.finish = str(output.finish)
    assert core.roster.cache.pool.owned == 0
    return answers


def requests(
    vocab: int, count: int, *, seed: int = 0, longest: int = 90, shortest: int = 0, answer: int = 12
) -> list[Request]:
    """Greedy and sampled requests of many lengths, some with equal beginnings, some with penalties or n = 2."""
    source = random.Random(seed)
    shared = [source.randrange(3, vocab) for _ in range(longest)]
    made = []
    for i in range(count):
        length = source.choice([1, 2, 15, 16, 17, 31, 33, source.randrange(1, longest)])
        length = max(length, source.randrange(shortest, longest)) if shortest else length
        length = longest if i % 6 == 0 else length
        ids = shared[:length] if i % 3 == 0 else [source.randrange(3, vocab) for _ in range(length)]
        kinds: Sequence[dict[str, Any]] = (
            {"temperature": 0.0},
            {"temperature": 1.0, "top_p": 0.9},
            {"temperature": 0.8, "top_k": 20, "repetition_penalty": 1.2},
            {"temperature": 1.2, "min_p": 0.05, "frequency_penalty": 0.5, "n": 2},
            {"temperature": 0.0, "prompt_logprobs": 2, "presence_penalty": 0.5},
            {"temperature": 0.9, "mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.4, "n": 2},
            {"typical_p": 0.8, "top_n_sigma": 2.0, "xtc_probability": 0.5, "xtc_threshold": 0.02},
            {"mirostat": 1, "mirostat_tau": 4.0, "repetition_penalty": 1.1, "repeat_last_n": 5},
            {"temperature": 1.5, "dynatemp_range": 0.5, "dry_multiplier": 0.8, "dry_allowed_length": 1},
            {"samplers": "dry;top_p;temperature;top_k", "dry_multiplier": 2.0, "dry_allowed_length": 1, "top_k": 3},
        )
        params = SamplingParams(max_tokens=answer, ignore_eos=True, logprobs=3, **kinds[i % len(kinds)])
        made.append(Request(f"r{i}", tuple(ids), params, seed=1000 + i))
    return made


def alone(model: Model, wanted: Iterable[Request], **scheduler: Any) -> Answers:
    """Each request in an engine of its own."""
    answers: Answers = {}
    for request in wanted:
        answers |= drive(model.engine(**scheduler), [request])
    return answers


def assert_equal(found: Answers, wanted: Answers) -> None:
    """Bit for bit: ids, logprobs, prompt logprobs, how it ended."""
    assert found.keys() == wanted.keys()
    for key, answer in wanted.items():
        assert found[key] == answer, f"{key} differs: {found[key].token_ids} and {answer.token_ids}"
