"""The events of one choice against the definition over its whole text, and the account of its tokens."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.request import FinishReason, Logprob
from octavo.text.events import Event, Finished, LogprobEntry, TextDelta
from octavo.text.output import Output, Stopped
from octavo.tokenizer.detokenizer import Detokenizer
from octavo.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import vocabularies

EMOJI = "🙂"


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(vocabularies.sentencepiece())


def entry(id_: int) -> LogprobEntry:
    return {id_: Logprob(-0.5, 1, str(id_))}


def run(ids: list[int], cuts: list[int], stop: list[str], include: bool, minimum: int) -> tuple[list[Event], Output]:
    output = Output(Detokenizer(tokenizer()), 3, stop, include, minimum)
    borders = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    events: list[Event] = []
    for a, b in zip(borders, borders[1:], strict=False):
        events += output.push(ids[a:b], [entry(id_) for id_ in ids[a:b]])
    return events + output.finish(FinishReason.LENGTH), output


def definition(ids: list[int], stop: list[str], include: bool, minimum: int) -> tuple[str, int, str | None]:
    """(text, tokens that count, stop string): token by token, the first after `minimum` whose text completes one."""
    detokenizer = Detokenizer(tokenizer())
    text = ""
    for count, id_ in enumerate([*ids, None], 1):
        before = len(text)
        text += detokenizer.finish() if id_ is None else detokenizer.push((id_,))
        count = min(count, len(ids))
        for end in range(before + 1, len(text) + 1):
            here = [s for s in stop if text[:end].endswith(s)]
            if here and count > minimum:
                longest = max(here, key=len)
                return text[: end if include else end - len(longest)], count, longest
    return text, len(ids), None


letters = st.sampled_from([*"abc ", EMOJI[:1], "é"])
stops = st.lists(st.text(letters, min_size=1, max_size=4), max_size=3)


@given(
    text=st.text(letters, max_size=20),
    special=st.lists(st.integers(0, 20), max_size=3),
    cuts=st.lists(st.integers(0, 60), max_size=10),
    stop=stops,
    include=st.booleans(),
    minimum=st.integers(0, 6),
)
def test_events_equal_the_definition(
    text: str, special: list[int], cuts: list[int], stop: list[str], include: bool, minimum: int
) -> None:
    ids = tokenizer().encode(text)
    for at in special:  # hidden tokens anywhere, also inside of a character's bytes
        ids.insert(at % (len(ids) + 1), 2)
    events, output = run(ids, cuts, stop, include, minimum)
    expected, count, matched = definition(ids, stop, include, minimum)
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert "".join(delta.text for delta in deltas) == expected
    assert [id_ for delta in deltas for id_ in delta.token_ids] == ids[:count]
    assert all(delta.index == 3 for delta in deltas)
    for delta in deltas:
        assert (delta.logprobs or ()) == tuple(entry(id_) for id_ in delta.token_ids)
    assert all(delta.text for delta in deltas[:-1])
    reason = FinishReason.LENGTH if matched is None else FinishReason.STOP
    assert events[-1] == Finished(3, reason, matched)
    assert output.stopped == (None if matched is None else Stopped(count, matched))
    assert output.tokens == count


def test_tokens_go_out_with_their_text() -> None:
    ids = [3 + byte for byte in (EMOJI + "ab").encode()]
    output = Output(Detokenizer(tokenizer()), stop=["ac"])
    assert [output.push([id_]) for id_ in ids[:3]] == [[], [], []]  # half a character is no event
    assert output.push(ids[3:4]) == [TextDelta(0, EMOJI, tuple(ids[:4]))]
    assert output.push(ids[4:5]) == []  # "a" could begin "ac"
    assert output.push(ids[5:6]) == [TextDelta(0, "ab", tuple(ids[4:]))]


def test_after_a_stop_string_nothing_follows() -> None:
    ids = [3 + byte for byte in b"xSTOPyz"]
    output = Output(Detokenizer(tokenizer()), stop=["STOP"])
    assert output.push(ids) == [
        TextDelta(0, "x", tuple(ids[:1])),
        TextDelta(0, "", tuple(ids[1:5])),
        Finished(0, FinishReason.STOP, "STOP"),
    ]
    assert output.stopped == Stopped(5, "STOP") and output.tokens == 5
    assert output.push(ids) == [] and output.finish(FinishReason.LENGTH) == []


def test_the_engine_ends_a_choice() -> None:
    output = Output(Detokenizer(tokenizer()), stop=["STOP"])
    assert output.push([3 + byte for byte in b"aST"])[0] == TextDelta(0, "a", (3 + ord("a"),))
    held = (3 + ord("S"), 3 + ord("T"), 2)
    output.push([2])
    assert output.finish(FinishReason.STOP, 2) == [TextDelta(0, "ST", held), Finished(0, FinishReason.STOP, 2)]
    assert Output(Detokenizer(tokenizer())).finish(FinishReason.ABORT) == [Finished(0, FinishReason.ABORT)]


@pytest.mark.parametrize("minimum", [0, 4, 5, 9])
def test_min_tokens(minimum: int) -> None:
    ids = [3 + byte for byte in b"STOPaSTOPb"]
    output = Output(Detokenizer(tokenizer()), stop=["STOP"], min_tokens=minimum)
    output.push(ids)
    assert output.stopped == {0: Stopped(4, "STOP"), 4: Stopped(9, "STOP"), 5: Stopped(9, "STOP"), 9: None}[minimum]
