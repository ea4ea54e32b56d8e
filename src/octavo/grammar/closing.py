"""A constraint that is about to run out of ids -> what may still be written so that the answer ends in time.

The library does not tell the shortest way to an end, so one is walked: at each state the id that looks most like an end
is taken (what closes, else what is forced, else what is short) until the constraint is fulfilled. Its length is what
must be left. Near the end an id that opens something is allowed only if the way behind it has room, and at the end
only the way itself. All is a function of the constraint, the ids and their limit, bounded by counts and never by time,
so that an answer is the same in every batch and after a restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from octavo.grammar.table import bits

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from octavo.grammar.matcher import Vocabulary

LONGEST_WAY = 160  # ids: the least object of 25 required keys
HORIZON = 96  # ids before the limit, from which on every step is watched; what one id opens should need no more
FORCED = 48  # ids that may follow, at most, for one of them to be taken as forced: the longest
TRIED = 4  # ids that open something, the shortest, of which it is found out whether there is room
FEW = 16  # ids that may follow, at most, for all of them to be tried: keys, values of an enum
SPARE = 4  # ids that one id may add to the way without opening anything: a letter of several bytes, an escape
STEPS = 16_000  # ids that are walked for one answer
KEPT = 256  # constraints whose least answers are known
OUTSIDE, INSIDE, ESCAPED = 0, 1, 2  # where JSON stands: of a string, or behind a backslash in one
Mask = npt.NDArray[np.uint32]
Way = tuple[int, ...]


class Ends:
    """What a vocabulary has to end answers with. One for all constraints."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens, special = vocabulary.tokens, set(vocabulary.special_ids)
        self._tokens, self._words, self._special = tokens, -(-len(tokens) // 32), special
        self.eos = bits([each for each in vocabulary.eos_ids if each < len(tokens)], self._words)
        plain = [each for each, token in enumerate(tokens) if token and each not in special]
        opening = [each for each in plain if any(byte in tokens[each] for byte in b'{[,:"')]
        leaving = [each for each in opening if b'"' in tokens[each] and tokens[each].strip(b'"}]')]
        self._opening = {OUTSIDE: bits(opening, self._words), INSIDE: bits(leaving, self._words)}
        self._by_length = np.array(sorted(opening, key=lambda each: (len(tokens[each]), each)), np.int64)
        closing = [each for each in plain if not tokens[each].strip(b'"}]')]
        closing.sort(key=lambda each: (-len(tokens[each]), each))
        quotes = [each for each in closing if tokens[each].startswith(b'"')]
        brackets = [each for each in closing if not tokens[each].startswith(b'"')]
        self._closing = {OUTSIDE: np.array(brackets, np.int64), INSIDE: np.array(quotes, np.int64)}
        by_bytes = {tokens[each]: each for each in reversed(plain)}
        words = [b"1", b"0", b"null", b"true", b"false", b'""', b'"', b"[", b"{"]
        letters = [bytes([byte]) for byte in (*range(48, 127), *range(32, 48), *range(128, 256))]
        short = [by_bytes[each] for each in (*words, *letters) if each in by_bytes]
        self._short = np.array(short, np.int64)
        onward = [by_bytes[each] for each in (b"{}", b"[]", b":", b",") if each in by_bytes]
        self._least: dict[bytes, Way | None] = {}
        self._onward = np.array(onward, np.int64)  # outside of strings, where nothing may be closed

    def opening(self, place: int) -> Mask:
        """Ids that may make the way longer by more than SPARE. Within a string only those that leave it and go on."""
        return self._opening[min(place, INSIDE)]

    def shortest(self, mask: Mask) -> list[int]:
        """Of the ids of a mask that open something, the TRIED shortest."""
        found = self._by_length[_there(mask, self._by_length)][:TRIED]
        return [int(each) for each in found]

    def after(self, place: int, token: int) -> int:
        """Where JSON stands behind an id; behind a special one it begins."""
        if token in self._special:
            return OUTSIDE
        for byte in self._tokens[token]:
            if place == ESCAPED:
                place = INSIDE
            elif place == INSIDE and byte == 0x5C:
                place = ESCAPED
            elif byte == 0x22:
                place = INSIDE - place
        return place

    def least(self, key: bytes, matcher: LLMatcher) -> Way | None:
        """The way of a whole answer. key: of the constraint, at whose beginning the matcher stands."""
        if key not in self._least:
            if len(self._least) == KEPT:
                del self._least[next(iter(self._least))]
            way, _ = self.walk(matcher, OUTSIDE)
            self._least[key] = self.walk(matcher, OUTSIDE, stray=True)[0] if way is None else way
        return self._least[key]

    def walk(self, matcher: LLMatcher, place: int, stray: bool = False) -> tuple[Way | None, int]:
        """Ids that fulfil the constraint from where the matcher stands, and how many were walked. None: there are too
        many of them, or no end was found. stray: take another turn wherever the same may follow as before, so as not to
        walk in circles."""
        here, way = matcher.deep_copy(), list[int]()  # a copy: what goes beyond the library's limits stays in error
        seen: Counter[bytes] = Counter()
        while not here.is_accepting():
            if len(way) == LONGEST_WAY:
                return None, len(way)
            data = here.compute_bitmask()
            turn = seen[data] if stray else 0
            ways = self._choices(np.frombuffer(data, np.uint32)[: self._words], place, turn > 0)
            if not ways or not here.consume_token(token := ways[turn % len(ways)]):
                return None, len(way)
            if stray:
                seen[data] += 1
            way.append(token)
            place = self.after(place, token)
        return tuple(way), len(way)

    def _choices(self, mask: Mask, place: int, every: bool) -> list[int]:
        """Ids to go on with, the best first; that alone if not `every`."""
        orders = (self._closing[min(place, INSIDE)], self._onward if place == OUTSIDE else self._short[:0])
        made = [int(each) for order in orders for each in order[_there(mask, order)]]
        if made and not every:
            return made[:1]
        allowed = mask & ~self.eos
        forced = ids_of(allowed, FORCED)
        if forced is not None:
            return list(dict.fromkeys([*made, *sorted(forced, key=self._rank, reverse=True)]))
        made += [int(each) for each in self._short[_there(mask, self._short)]]
        if not made:
            word = int(np.flatnonzero(allowed)[0])
            made = [word * 32 + (int(allowed[word]) & -int(allowed[word])).bit_length() - 1]
        return made

    def _rank(self, token: int) -> tuple[bool, int, int]:
        """Of what is forced: blanks last, the longest, the first."""
        text = self._tokens[token]
        return not text[:1].isspace(), len(text), -token


class Closing:
    """One answer on its way to its end. room: ids that it may have in all, its end id among them."""

    def __init__(self, ends: Ends, least: Way | None, room: int) -> None:
        """least: the way of a whole answer."""
        self._ends, self._left, self._steps = ends, room, STEPS
        self._place = OUTSIDE
        self._way = least
        # Nothing is tried where not even the least answer has room.
        self._hopeless = least is None or len(least) >= room
        self._horizon = max(HORIZON, 2 * len(least or ()))

    def take(self, matcher: LLMatcher, token: int) -> None:
        """The answer has this id, which the matcher has consumed."""
        self._left -= 1
        self._place = self._ends.after(self._place, token)
        if self._way and self._way[0] == token:
            self._way = self._way[1:]
        elif not self._near or self._way is None or not _fulfils(matcher, self._way):
            self._way = self._walk(matcher, self._place) if self._near else None

    def narrow(self, matcher: LLMatcher, mask: Mask) -> bool:
        """Leave in the mask what lets the answer end in time. True if it must end now."""
        if not self._near or self._way is None:
            return False
        ends, needed = self._ends, len(self._way) + 1  # with the end id
        first = _some(self._way[:1], len(mask)) if self._way else ends.eos
        if self._left <= needed + SPARE:
            mask[:] = first
            return not self._way
        few = ids_of(mask & ~first, FEW)
        doubtful = mask.copy() if few is not None else ends.opening(self._place)
        tried = few if few is not None else ends.shortest(mask & doubtful) if self._place == OUTSIDE else []
        fit = [each for each in tried if self._has_room(matcher, each)]
        mask &= ~doubtful | first | _some(fit, len(mask))
        return False

    @property
    def _near(self) -> bool:
        """Whether the limit is so near that the way must be known."""
        return not self._hopeless and self._left <= self._horizon

    def _has_room(self, matcher: LLMatcher, token: int) -> bool:
        """Whether the answer could still end behind an id."""
        here = matcher.deep_copy()
        if not here.consume_token(token):
            return False
        way = self._walk(here, self._ends.after(self._place, token))
        return way is not None and len(way) + 2 <= self._left

    def _walk(self, matcher: LLMatcher, place: int) -> Way | None:
        for stray in (False, True):
            if self._steps <= 0:
                break
            way, steps = self._ends.walk(matcher, place, stray)
            self._steps -= steps + 1
            if way is not None:
                return way
        return None


def _fulfils(matcher: LLMatcher, way: Way) -> bool:
    """Whether these ids fulfil the constraint."""
    here = matcher.deep_copy()
    return here.try_consume_tokens([*way]) == len(way) and bool(here.is_accepting())


def _some(ids: Sequence[int], words: int) -> Mask:
    """A mask of a few ids."""
    made = np.zeros(words, np.uint32)
    for each in ids:
        made[each >> 5] |= np.uint32(1 << (each & 31))
    return made


def ids_of(mask: Mask, most: int) -> list[int] | None:
    """The ids of a mask; None if there are more than `most`."""
    words = np.flatnonzero(mask)
    if len(words) > most:
        return None
    at = np.flatnonzero(np.unpackbits(mask[words].view(np.uint8), bitorder="little"))
    return None if len(at) > most else [int(words[each // 32]) * 32 + int(each % 32) for each in at]


def _there(mask: Mask, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the ids the mask has."""
    found: npt.NDArray[np.bool_] = ((mask[ids >> 5] >> (ids & 31).astype(np.uint32)) & 1).astype(np.bool_)
    return found
