"""Stop strings in a growing text, across the borders of tokens. Knows text only; tokens are output's.

The text ends at the first position at which any stop string is complete; if several end there, the longest is the one
that matched. This depends on the text alone, never on how it was cut into pieces.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Releases the text that no stop string can claim any more; holds back the longest end that could begin one.

    include: a matched stop string stays in the text (include_stop_str_in_output).
    """

    __slots__ = ("_first", "_held", "_include", "_longest", "_stops", "matched")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(dict.fromkeys(stop for stop in stops if stop))
        self._include = include
        self._first = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    @property
    def any(self) -> bool:
        """Whether text ever waits here."""
        return bool(self._stops)

    def push(self, text: str, ignore: bool = False) -> str:
        """More text in, releasable text out. With `ignore` no stop string ends within this piece (min_tokens).

        After a match (`matched` is set) there is nothing to push.
        """
        if not self._stops:
            return text
        known = len(self._held)  # no match ends within the held text: it was looked at, or ignored
        text = self._held + text
        if not ignore:
            found = self._first_end(text, known)
            if found is not None:
                end, self.matched = found
                self._held = ""
                return text[: end if self._include else end - len(self.matched)]
        keep = self._could_begin(text)
        self._held = text[keep:]
        return text[:keep]

    def finish(self) -> str:
        """The held text, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held

    def _first_end(self, text: str, known: int) -> tuple[int, str] | None:
        """(end, stop string) of the first match that ends after `known` characters."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            at = text.find(stop, max(0, known + 1 - len(stop)))
            if at >= 0 and (best is None or (at + len(stop), at) < best[:2]):
                best = (at + len(stop), at, stop)
        return None if best is None else (best[0], best[2])

    def _could_begin(self, text: str) -> int:
        """Where the longest end of `text` starts that is the beginning of a stop string; len(text) if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first:
                end = text[start:]
                if any(len(stop) > len(end) and stop.startswith(end) for stop in self._stops):
                    return start
        return len(text)
