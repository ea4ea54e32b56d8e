"""Beam search, best_of and scores of whole texts against transformers: a tiny model, float32 weights and cache."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from octavo import LLM, BeamSearchParams, SamplingParams
from octavo.errors import InvalidRequest
from tests import tiny

PROMPT = [10, 200, 31, 77, 5, 99, 142, 8, 61, 250, 33, 17, 18, 19, 20, 21, 5]  # one more than a block
LONG = [(37 * i + 11) % 250 + 3 for i in range(150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose end id is the fourth of the greedy answer to PROMPT, so that beams end at different lengths."""
    made = tiny.folder(tmp_path_factory.mktemp("tiny") / "model")
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    greedy = model.generate(torch.tensor([PROMPT]), max_new_tokens=4, do_sample=False, eos_token_id=None)[0]
    (made / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": int(greedy[-1])}))
    return made


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    places = {"cache_dir": str(folder.parent / "cache"), "state_dir": str(folder.parent / "state")}
    with LLM(
        str(folder), kv_cache_dtype="float32", max_num_batched_tokens=64, kv_cache_memory="8MiB", **places
    ) as made:
        yield made


@pytest.fixture(scope="module")
def oracle(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logprobs_of(oracle: torch.nn.Module, ids: list[int]) -> list[float]:
    with torch.no_grad():
        rows = torch.log_softmax(oracle(torch.tensor([ids])).logits[0].double(), -1)
    return [float(rows[i, id_]) for i, id_ in enumerate(ids[1:])]


@pytest.mark.parametrize(("width", "length_penalty"), [(1, 1.0), (4, 1.0), (5, 0.0), (3, 2.0), (4, -1.0)])
@pytest.mark.parametrize("ends", [True, False])
def test_beams_equal_transformers(
    llm: LLM, oracle: torch.nn.Module, width: int, length_penalty: float, ends: bool
) -> None:
    params = BeamSearchParams(width, 8, ignore_eos=not ends, length_penalty=length_penalty)
    (output,) = llm.beam_search({"prompt_token_ids": PROMPT}, params)
    eos = list(llm.get_tokenizer().eos_ids)
    with torch.no_grad():
        wanted = oracle.generate(
            torch.tensor([PROMPT]), num_beams=width, num_return_sequences=width, max_new_tokens=8, do_sample=False,
            length_penalty=length_penalty, early_stopping="never", eos_token_id=eos if ends else None, pad_token_id=0,
        )  # fmt: skip
    answers = []
    for row in wanted[:, len(PROMPT) :].tolist():
        end = next((place + 1 for place, id_ in enumerate(row) if ends and id_ in eos), len(row))
        answers.append(row[:end])
    assert [choice.token_ids for choice in output.outputs] == answers
    if ends and length_penalty < 0:
        assert "stop" in {choice.finish_reason for choice in output.outputs}


def test_what_a_beam_tells(llm: LLM, oracle: torch.nn.Module) -> None:
    (output,) = llm.beam_search({"prompt_token_ids": PROMPT}, BeamSearchParams(3, 6, ignore_eos=True))
    sums = []
    for choice in output.outputs:
        assert choice.finish_reason == "length" and len(choice.token_ids) == 6 and choice.text
        costs = logprobs_of(oracle, PROMPT + choice.token_ids)[len(PROMPT) - 1 :]
        assert choice.cumulative_logprob == pytest.approx(sum(costs), abs=1e-3)
        sums.append(choice.cumulative_logprob)
    assert sums == sorted(sums, reverse=True)


def test_refusals(llm: LLM) -> None:
    for make, name in (
        (lambda: BeamSearchParams(11, 5), "beam_width"),
        (lambda: BeamSearchParams(0, 5), "beam_width"),
        (lambda: BeamSearchParams(2, 5, length_penalty=float("nan")), "length_penalty"),
        (lambda: llm.beam_search(PROMPT, BeamSearchParams(2, 0)), "max_tokens"),
        (
            lambda: llm.beam_search([], BeamSearchParams(2, 3)) or llm.beam_search([[]], BeamSearchParams(2, 3)),
            "prompt",
        ),
    ):
        with pytest.raises(InvalidRequest) as refused:
            make()
        assert refused.value.param == name


def test_best_of(llm: LLM) -> None:
    """The n of the highest mean log-probability of the very answers that n = best_of gives."""
    given = {"max_tokens": 7, "seed": 5, "temperature": 1.5, "ignore_eos": True}
    (every,) = llm.generate([PROMPT], SamplingParams(n=6, logprobs=0, **given))
    ranked = sorted(every.outputs, key=lambda choice: -(choice.cumulative_logprob or 0) / len(choice.token_ids))
    (best,) = llm.generate([PROMPT], SamplingParams(n=2, best_of=6, **given))
    assert [choice.token_ids for choice in best.outputs] == [choice.token_ids for choice in ranked[:2]]
    assert [choice.index for choice in best.outputs] == [0, 1]
    assert all(choice.logprobs is None and choice.finish_reason == "length" for choice in best.outputs)
    (told,) = llm.generate([PROMPT], SamplingParams(best_of=6, logprobs=2, **given))
    assert told.outputs[0].cumulative_logprob == pytest.approx(ranked[0].cumulative_logprob)


def test_scores_equal_transformers(llm: LLM, oracle: torch.nn.Module) -> None:
    """Cold, then with the prompt in the prefix cache, in chunks of 64 rows; a longer prompt behind a cached one."""
    for ids in (LONG, LONG, LONG + PROMPT, [7], PROMPT):
        (scores,) = llm.score_tokens({"prompt_token_ids": ids})
        assert scores == pytest.approx(logprobs_of(oracle, ids), abs=1e-3)
    (output,) = llm.generate([LONG], SamplingParams(max_tokens=1))
    assert output.num_cached_tokens >= 128, "the cache had the prompt all the time"


def test_prompt_logprobs_equal_transformers(llm: LLM, oracle: torch.nn.Module) -> None:
    (output,) = llm.generate([PROMPT], SamplingParams(max_tokens=1, prompt_logprobs=3))
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    with torch.no_grad():
        rows = torch.log_softmax(oracle(torch.tensor([PROMPT])).logits[0].double(), -1)
    for row, entry in zip(rows, output.prompt_logprobs[1:], strict=False):
        assert entry is not None
        values, ids = row.topk(3)
        top = [id_ for id_, each in entry.items() if each.rank is not None and each.rank <= 3]
        assert sorted(top) == sorted(ids.tolist())
        for value, id_ in zip(values.tolist(), ids.tolist(), strict=True):
            assert entry[id_].logprob == pytest.approx(value, abs=1e-3)
