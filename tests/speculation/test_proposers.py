"""Proposers against brute force over the whole text, and the adaptive length against its definition."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.speculation import ngram, suffix
from octavo.speculation.choice import choose
from octavo.speculation.drafter import Drafter
from octavo.speculation.ngram import NgramProposer
from octavo.speculation.pace import GAIN, Pace
from octavo.speculation.proposer import NOTHING, Proposal
from octavo.speculation.suffix import LEAST_SHARE, SuffixProposer

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=80)
CUTS = st.lists(st.integers(1, 80), max_size=5)


def common(ids: list[int], place: int, most: int) -> int:
    """How many ids before `place` equal those at the end, by comparing slices."""
    return max(
        (n for n in range(most + 1) if n <= place and ids[place - n : place] == ids[len(ids) - n :]), default=0
    )  # fmt: skip


def places(ids: list[int], most: int) -> list[int]:
    """Places after the pair that `ids` ends with, the latest first, at most `most`."""
    found = [p for p in range(len(ids) - 1, 1, -1) if ids[p - 2 : p] == ids[-2:]]
    return found[:most]


@settings(deadline=None)
@given(TEXTS, CUTS, st.integers(2, 4), st.integers(0, 6), st.integers(1, 9))
def test_ngram(text: list[int], cuts: list[int], shortest: int, more: int, limit: int) -> None:
    """The longest match of at most `longest`, then the latest; fed in pieces, as ids come."""
    longest = shortest + more
    proposer = NgramProposer(shortest, longest)
    ids: list[int] = []
    for cut in [*sorted(cuts), len(text)]:
        ids.extend(text[len(ids) : cut])  # the same list grows
        found = proposer.propose(ids, limit) if ids else NOTHING
        matches = [(common(ids, p, longest), p) for p in places(ids, ngram.LOOKED_AT)] if len(ids) > 1 else []
        best = max(matches, default=(0, 0))
        if best[0] < shortest:
            assert found == NOTHING
        else:
            assert found == Proposal(ids[best[1] : best[1] + limit], best[0])


@settings(deadline=None)
@given(TEXTS, st.integers(1, 9))
def test_suffix(ids: list[int], limit: int) -> None:
    """Every guessed id has enough votes of the places with the longest match, and the guess ends where none has."""
    found = SuffixProposer().propose(ids, limit)
    matches = [(common(ids, p, suffix.LONGEST), p) for p in places(ids, suffix.LOOKED_AT)] if len(ids) > 1 else []
    if not matches:
        assert found == NOTHING
        return
    best = max(count for count, _ in matches)
    assert found.matched == best and 0 < len(found.ids) <= limit
    voters = [p for count, p in matches if count == best]
    agreed = voters
    for guess in found.ids:
        following = [ids[p] for p in agreed if p < len(ids)]
        assert following.count(guess) == max(map(following.count, following)) >= LEAST_SHARE * len(voters)
        agreed = [p + 1 for p in agreed if p < len(ids) and ids[p] == guess]
    if len(found.ids) < limit:
        following = [ids[p] for p in agreed if p < len(ids)]
        assert max(map(following.count, following), default=0) < max(1, LEAST_SHARE * len(voters))


@settings(deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 70), st.floats(1, 8), st.lists(st.floats(0, 1), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 40), st.integers(0, 8)), max_size=30),
)  # fmt: skip
def test_the_length_has_the_most_ids_a_second(
    offered: int, matched: int, expected: float, more: list[float], past: list[tuple[int, int, int]]
) -> None:
    pace = Pace()
    for drafted, rested, accepted in past:
        pace.learn(drafted, rested, min(drafted, accepted))
    assert all(0 < right <= tries for right, tries in zip(pace._right, pace._tries, strict=True))
    seconds = [1.0]
    for each in more:
        seconds.append(seconds[-1] + each)
    chances = [
        pace._right[k] / pace._tries[k] for k in (min((matched + i).bit_length(), 6) - 1 for i in range(offered))
    ]
    length, made = pace.length(offered, matched, expected, seconds)
    rates, sum_, chance = [GAIN * expected / seconds[0]], expected, 1.0
    for share, took in zip(chances, seconds[1:], strict=False):
        chance *= share
        sum_ += chance
        rates.append(sum_ / took)
    assert rates[length] == pytest.approx(max(rates))
    assert made == pytest.approx(rates[length] * seconds[length] / (GAIN if length == 0 else 1))


class _Always:
    def propose(self, ids: list[int], limit: int) -> Proposal:
        return Proposal([0] * limit, 4)


def test_what_is_never_right_is_tried_rarely_and_what_is_always_right_at_length() -> None:
    """A row more costs an eighth of a step. Wrong: under one try in ten steps in the end, of one id. Right: all."""
    seconds = [1 + i / 8 for i in range(16)]
    wrong, right = Drafter(_Always()), Drafter(_Always())
    tries = []
    for turn in range(600):
        draft, _ = wrong.draft([1, 2, 3], 15, 1.0, seconds)
        if draft:
            wrong.learn(len(draft), 0)
            tries += [len(draft)] * (turn >= 300)
        draft, _ = right.draft([1, 2, 3], 15, 1.0, seconds)
        right.learn(len(draft), len(draft))
    assert 0 < len(tries) < 30 and max(tries) <= 2
    assert len(draft) == 15 and right.copying and not wrong.copying


def test_options() -> None:
    def chosen(**options: object) -> tuple[str, int]:
        made = choose(EngineConfig(**options))  # type: ignore[arg-type]
        return made.method, made.tokens

    assert choose(EngineConfig()).new is None
    assert chosen(spec_method="ngram", spec_tokens=7) == ("ngram", 7)
    assert isinstance(choose(EngineConfig(spec_method="suffix")).new(), SuffixProposer)  # type: ignore[misc]
    vllm = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "prompt_lookup_min": 1}
    assert chosen(speculative_config=vllm) == ("ngram", 5)
    proposer = choose(EngineConfig(speculative_config=vllm)).new()  # type: ignore[misc]
    ids = [random.Random(1).randrange(9) for _ in range(4)] + [20, 21, 22, 23, 24, 30, 9, 20, 21, 22, 23, 24]
    assert proposer.propose(ids, 5) == Proposal([30, 9, 20, 21, 22], 4)  # a match of 5 counts as 4
    for broken in ({"method": "eagle"}, {"method": ["ngram"]}, {"num_speculative_tokens": 0}, {"model": "x"},
                   {"prompt_lookup_max": 0}, {"prompt_lookup_min": 50}, {"num_speculative_tokens": True}):  # fmt: skip
        with pytest.raises(ConfigError, match="--speculative-config"):
            choose(EngineConfig(speculative_config=broken))
