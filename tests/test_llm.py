"""`LLM` and `AsyncLLM` on the real model: vLLM's names and shapes, and nothing left behind."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo import LLM, AsyncLLM, RequestOutput, SamplingParams, start_in_process
from octavo.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from tests import real

SMALL = {"max_model_len": 512, "max_num_seqs": 8, "kv_cache_memory": 64 << 20}


def options(folder: Path) -> dict[str, object]:
    return {**SMALL, "cache_dir": str(folder / "cache"), "state_dir": str(folder / "state")}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with LLM(str(real.smollm2()), **options(tmp_path_factory.mktemp("llm"))) as made:
        yield made


GREEDY = SamplingParams(temperature=0, max_tokens=12)


def test_generate(llm: LLM) -> None:
    outputs = llm.generate(["The capital of France is", "def add(a, b):"], GREEDY, use_tqdm=False)
    assert [type(output) for output in outputs] == [RequestOutput, RequestOutput]
    first = outputs[0]
    assert first.prompt == "The capital of France is" and first.finished
    assert first.prompt_token_ids == llm.get_tokenizer().encode(first.prompt, add_special_tokens=True)
    choice = first.outputs[0]
    assert (choice.index, choice.finish_reason, len(choice.token_ids)) == (0, "length", 12)
    assert choice.text == llm.get_tokenizer().decode(choice.token_ids) and "Paris" in choice.text


def test_forms_of_prompts(llm: LLM) -> None:
    """Text, ids and dicts, one or several, give the same answers; parameters may be one each."""
    text = "Once upon a time"
    ids = llm.get_tokenizer().encode(text, add_special_tokens=True)
    forms = [llm.generate(each, GREEDY) for each in (text, ids, {"prompt": text}, {"prompt_token_ids": ids})]
    assert len({output.outputs[0].text for (output,) in forms}) == 1
    both = llm.generate([text, ids], [GREEDY, SamplingParams(temperature=0, max_tokens=3)])
    assert [len(output.outputs[0].token_ids) for output in both] == [12, 3]
    with pytest.raises(InvalidRequest, match="2 prompts but 1"):
        llm.generate([text, text], [GREEDY])


def test_chat_logprobs_and_choices(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=7, temperature=1.0, max_tokens=8, logprobs=2, prompt_logprobs=1)
    messages = [{"role": "user", "content": "Name a colour."}]
    (output,) = llm.chat(messages, params)
    assert output.prompt is not None and output.prompt.endswith("<|im_start|>assistant\n")
    assert len({tuple(choice.token_ids) for choice in output.outputs}) == 3
    for choice in output.outputs:
        assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)
        chosen = [entry[token].logprob for entry, token in zip(choice.logprobs, choice.token_ids, strict=True)]
        assert choice.cumulative_logprob == pytest.approx(sum(chosen))
        assert all(2 <= len(entry) <= 3 for entry in choice.logprobs)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    (again,) = llm.chat([messages], params)
    assert [choice.token_ids for choice in again.outputs] == [choice.token_ids for choice in output.outputs]
    assert again.outputs[0].logprobs == output.outputs[0].logprobs


def test_stops(llm: LLM) -> None:
    (whole,) = llm.generate("One, two, three,", SamplingParams(temperature=0, max_tokens=20))
    text, ids = whole.outputs[0].text, whole.outputs[0].token_ids
    stop = text[5:8]
    (cut,) = llm.generate("One, two, three,", SamplingParams(temperature=0, max_tokens=20, stop=stop))
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
    assert cut.outputs[0].text == text[: text.index(stop)]
    (by_id,) = llm.generate("One, two, three,", SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[ids[4]]))
    assert by_id.outputs[0].token_ids == ids[: ids.index(ids[4]) + 1] and by_id.outputs[0].stop_reason == ids[4]


def test_refusals(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 512 tokens"):
        llm.generate([[5] * 600], GREEDY)
    with pytest.raises(InvalidRequest, match="at least one token"):
        llm.generate([[]], GREEDY)
    with pytest.raises(InvalidRequest, match="ids go from 0 to"):
        llm.generate([[10**6]], GREEDY)
    with pytest.raises(ModelNotFound):
        LLM("no-such-model", offline=True)


async def test_async(tmp_path: Path) -> None:
    """Streams grow; concurrent requests do not touch one another; leaving a stream aborts it."""
    llm: AsyncLLM = await start_in_process(str(real.smollm2()), options(tmp_path))
    try:

        async def stream(prompt: str) -> list[str]:
            return [output.outputs[0].text async for output in llm.generate(prompt, GREEDY)]

        texts = await asyncio.gather(*(stream(f"Item {i}:") for i in range(6)))
        for grown in texts:
            assert all(longer.startswith(shorter) for shorter, longer in zip(grown, grown[1:], strict=False))
        assert (await stream("Item 3:"))[-1] == texts[3][-1]
        long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
        generation = llm.generate("Count:", long)
        await anext(generation)
        await generation.aclose()
        for _ in range(100):
            if (await llm.client.stats()).blocks_owned == 0:
                break
            await asyncio.sleep(0.02)
        assert (await llm.client.stats()).blocks_owned == 0
    finally:
        await llm.close()


def test_defaults_of_the_catalogue(tmp_path: Path) -> None:
    """The default model's file states no sampling defaults; the catalogue has its authors'."""
    cache = tmp_path / "cache" / "models"
    cache.mkdir(parents=True)
    (cache / real.smollm2().name).symlink_to(real.smollm2())
    with LLM(**options(tmp_path), offline=True) as llm:
        defaults = llm.get_default_sampling_params()
        assert (defaults.temperature, defaults.top_p) == (0.2, 0.9)
        assert llm.llm.default_sampling_params(temperature=1.5).temperature == 1.5
