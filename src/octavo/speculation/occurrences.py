"""Where the last ids of a text stood before: hash chains over pairs of ids, as in match finders of LZ77.

One dictionary entry and one integer an id (about 120 bytes), constant time for each that is added. It knows ids only.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

_SHIFT = 32  # an id is an int32


class Occurrences:
    """The places in a growing text at which a pair of ids ends. A place is the number of ids before what follows."""

    __slots__ = ("_before", "_latest")

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}  # pair -> the last place after it
        self._before = array("i")  # place - 1 -> the place before it with the same pair, 0: none

    def extend(self, ids: Sequence[int]) -> None:
        """Learn of all places inside of `ids`, the whole text so far: those that an id follows."""
        latest, before = self._latest, self._before
        start = len(before) + 1
        if start == 1 and len(ids) > 1:
            before.append(0)  # a single id is no pair
            start = 2
        for place in range(start, len(ids)):
            key = ids[place - 2] << _SHIFT | ids[place - 1]
            before.append(latest.get(key, 0))
            latest[key] = place

    def places(self, first: int, second: int) -> Iterator[int]:
        """The places after the pair, latest first."""
        place = self._latest.get(first << _SHIFT | second, 0)
        while place:
            yield place
            place = self._before[place - 1]


def common(text: Sequence[int], place: int, ids: Sequence[int], most: int) -> int:
    """How many ids before `place` in `text` equal the last ones of `ids`, at most `most`. The last two are known to."""
    count, end = 2, len(ids)
    most = min(most, place, end)
    while count < most and text[place - 1 - count] == ids[end - 1 - count]:
        count += 1
    return count
