"""The reference executor: paged and ragged steps, a bf16 cache, gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from octavo.execution.reference import ReferenceModel, Rows
from octavo.models.llama import from_config
from octavo.program.graph import Node
from octavo.program.trace import trace
from tests import tiny


def model(kv_dtype: str = "float32", slots: int = 3, **changes: object) -> ReferenceModel:
    config = tiny.config(**changes)
    weights = {name: torch.from_numpy(values) for name, values in tiny.weights(config).items()}
    programs = trace(from_config(config, positions=96).functions)
    return ReferenceModel(programs, weights, positions=96, slots=slots, kv_dtype=kv_dtype)


def ids(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, tiny.VOCAB_SIZE, count).tolist()


@pytest.mark.parametrize("changes", [{}, {"model_type": "mistral", "sliding_window": 20}])
def test_chunks_in_mixed_steps_equal_whole_prompts(changes: dict[str, object]) -> None:
    prompts = [ids(seed, 50) for seed in range(3)]
    with torch.no_grad():
        wanted = [model(**changes).logits([Rows(0, 0, prompt)]) for prompt in prompts]
        mixed = model(**changes)
        done = [0, 0, 0]
        for counts in ([7, 0, 30], [1, 16, 1], [42, 33, 1], [0, 1, 18]):
            runs = [Rows(s, done[s], prompts[s][done[s] : done[s] + n]) for s, n in enumerate(counts) if n]
            rows = iter(mixed.logits(runs))
            for run in runs:
                for i in range(len(run.ids)):
                    torch.testing.assert_close(next(rows), wanted[run.slot][run.start + i], rtol=0, atol=2e-5)
                done[run.slot] += len(run.ids)
    assert done == [50, 50, 50]


def test_a_bf16_cache_holds_bf16() -> None:
    small, full = model("bf16"), model("float32")
    with torch.no_grad():
        small.logits([Rows(0, 0, ids(0, 20))])
        full.logits([Rows(0, 0, ids(0, 20))])
    pool, exact = small.executor.caches[0].pools[0, 1], full.executor.caches[0].pools[0, 1]
    assert torch.equal(pool, pool.to(torch.bfloat16).to(torch.float32))
    assert torch.equal(pool, exact.to(torch.bfloat16).to(torch.float32)) and not torch.equal(pool, exact)


def test_every_node_is_observed_and_no_rows_are_legal() -> None:
    seen: list[str] = []

    def observe(node: Node, result: object) -> None:
        seen.append(node.op.name)

    reference = model()
    with torch.no_grad():
        assert reference.hidden([], observe).shape == (0, 64)
        assert reference.logits([Rows(0, 0, ids(0, 3))], []).shape == (0, tiny.VOCAB_SIZE)
    assert seen == [node.op.name for node in reference.programs["body"].nodes]


def test_gradients_are_those_of_transformers(tmp_path: Path) -> None:
    """Of every weight, through two steps: the second reads keys that the first wrote."""
    prompt = ids(5, 24)
    theirs = AutoModelForCausalLM.from_pretrained(tiny.folder(tmp_path / "model"), dtype=torch.float32)
    targets = torch.tensor(prompt[1:])
    torch.nn.functional.cross_entropy(theirs(torch.tensor([prompt])).logits[0, :-1], targets).backward()
    ours = model()
    for weight in ours.executor.weights.values():
        weight.requires_grad_()
    logits = torch.cat([ours.logits([Rows(0, 0, prompt[:10])]), ours.logits([Rows(0, 10, prompt[10:])])])
    torch.nn.functional.cross_entropy(logits[:-1], targets).backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours.executor.weights[name].grad, parameter.grad, rtol=1e-3, atol=1e-5)
