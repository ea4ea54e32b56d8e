"""A budget of reasoning: the end is written in the model's place, and the answer is what the model says behind that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo import AsyncLLM, SamplingParams, start_in_process
from octavo.flow import items
from octavo.request import ChatRequest, Reasoning
from octavo.server.submit import Gathered
from tests import real

# SmolLM2 does not reason by itself; with its answer begun like this, everything is reasoning.
BEGUN: list[dict[str, Any]] = [
    {"role": "user", "content": "How many legs have two cats?"},
    {"role": "assistant", "content": "<think>\nA cat has"},
]


async def answers(llm: AsyncLLM, budget: int | None, **params: Any) -> tuple[list[Gathered], Any]:
    given = SamplingParams(**{"temperature": 0.9, "seed": 5, "max_tokens": 40, "ignore_eos": True, **params})
    generation = await llm.submit_chat(ChatRequest(BEGUN, given, reasoning=Reasoning(budget=budget)))
    choices = [Gathered() for _ in range(given.n)]
    async for events in items(generation):
        for event in events:
            choices[event.index].add(event)
    return choices, generation


async def test_reasoning_ends_at_its_budget(tmp_path: Path) -> None:
    options = {
        "max_model_len": 256, "kv_cache_memory": "64MiB", "state_dir": str(tmp_path), "reasoning_parser": "think",
    }  # fmt: skip
    llm = await start_in_process(str(real.smollm2()), options)
    closing = llm.tokenizer.encode("\n</think>\n\n")
    try:
        (free, other), _ = await answers(llm, None, n=2)
        assert free.reasoning and not free.text and free.reason == "length"
        for budget in (1, 2, 7, 16):
            (first, second), generation = await answers(llm, budget, n=2, logprobs=1)
            for choice, unlimited in ((first, free), (second, other)):
                ids = choice.token_ids
                assert ids[:budget] == unlimited.token_ids[:budget]
                assert ids[budget : budget + len(closing)] == closing and len(ids) == len(choice.logprobs) == 40
                assert choice.reasoning == llm.tokenizer.decode(ids[:budget]).strip() and not choice.text.startswith(
                    "</think>"
                )
                assert choice.logprobs[budget][closing[0]].logprob == 0.0
            assert generation.usage.reasoning_tokens >= 2 * budget and generation.usage.completion_tokens == 80
        # What follows is what a prompt with these words is answered: at temperature 0, so that positions do not matter.
        (greedy,), generation = await answers(llm, 7, temperature=0)
        head = [*generation.request.prompt_ids, *greedy.token_ids[: 7 + len(closing)]]
        plain = SamplingParams(temperature=0, max_tokens=33 - len(closing), ignore_eos=True)
        rest = [output async for output in llm.generate(head, plain)][-1]
        assert greedy.token_ids[7 + len(closing) :] == rest.outputs[0].token_ids
        (cut,), _ = await answers(llm, 7, max_tokens=9)
        assert len(cut.token_ids) == 9 and cut.token_ids[7:] == closing[:2] and cut.reason == "length"
        again = [(await answers(llm, 7, n=2))[0] for _ in range(2)]
        assert [each.token_ids for each in again[0]] == [each.token_ids for each in again[1]]
        stopped, _ = await answers(llm, 7, stop=["</think>"])
        assert stopped[0].reason == "stop" and stopped[0].stop_reason == "</think>"
    finally:
        await llm.close()
