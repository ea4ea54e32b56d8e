"""Transcripts all the way back, ids -> text -> stop strings -> reasoning, calls and text: every token once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from octavo.request import FinishReason
from octavo.server.submit import Gathered
from octavo.text.events import Event, Finished, ReasoningDelta
from octavo.text.output import Output
from octavo.tokenizer.detokenizer import Detokenizer
from tests.text.test_output import entry, tokenizer
from tests.text.test_parsers import ALL, Case, Meaning, read


def ids_of(text: str) -> list[int]:
    """Whole pieces of the vocabulary where it has them, else bytes."""
    return tokenizer().encode(text)


def run(
    case: Case, ids: list[int], every: int, logprobs: bool, stop: tuple[str, ...] = ()
) -> tuple[list[Event], Output]:
    output = Output(Detokenizer(tokenizer(), shown=case.parsing.shown), 0, stop, parsing=case.parsing)
    events: list[Event] = []
    for at in range(0, len(ids), every):
        some = ids[at : at + every]
        events += output.push(some, [entry(id_) for id_ in some] if logprobs else None)
    return events + output.finish(FinishReason.STOP), output


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.title)
def test_every_token_goes_out_once(case: Case) -> None:
    """In steps of 1 to 8 tokens, with a stop string that never comes, and with logprobs."""
    ids = ids_of(case.answer)
    expected = read(case.parsing, [tokenizer().decode(ids, skip_special_tokens=False)])
    for every in range(1, 9):
        for logprobs, stop in ((False, ()), (True, ()), (every % 2 == 0, ("\x07\x07",))):
            events, output = run(case, ids, every, logprobs, stop)
            choice = Gathered()
            for event in events:
                choice.add(event)
            calls = [[call.name, call.arguments] for call in choice.tool_calls]
            assert Meaning(choice.reasoning, choice.text, calls) == expected
            assert choice.token_ids == ids[: output.tokens]
            assert choice.logprobs == ([entry(id_) for id_ in choice.token_ids] if logprobs else [])
            assert output.tokens == len(ids) or case.parsing.single
            last = events[-1]
            assert isinstance(last, Finished)
            assert last.reason is (FinishReason.TOOL_CALLS if calls else FinishReason.STOP)
            assert bool(output.reasoning_tokens) >= bool(expected.reasoning)


@pytest.mark.parametrize("case", [case for case in ALL if case.meaning.reasoning], ids=lambda case: case.title)
def test_reasoning_is_left_out_but_counted(case: Case) -> None:
    ids = ids_of(case.answer)
    told, output = run(case, ids, 3, True)
    quiet, silent = run(replace(case, parsing=replace(case.parsing, exclude=True)), ids, 3, True)
    assert not any(isinstance(event, ReasoningDelta) for event in quiet)
    choice, other = Gathered(), Gathered()
    for event in told:
        choice.add(event)
    for event in quiet:
        other.add(event)
    assert (choice.text, choice.token_ids) == (other.text, other.token_ids) and choice.logprobs == other.logprobs
    assert silent.reasoning_tokens == output.reasoning_tokens > 0
