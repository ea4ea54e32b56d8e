"""Who may run after the engine has died, until the request that kills it is found.

Members of the step in which it died are suspects; everybody else goes on at once. Suspects are tried in halves, one
group after the other: a group whose engine dies is halved again, and one suspect that is left runs alone. A suspect is
cleared when it has given as many ids as the lost step might have given it; one that dies with nobody else to blame is
guilty. It knows names, no requests and no processes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """guilty: the request that will not run again. isolating: this death brought the search on, as those of a poisonous
    request do (log2 of a batch, and one): only the first of them counts against the engine."""

    guilty: str | None = None
    isolating: bool = False


class Quarantine:
    """Suspects, of no engine at first."""

    def __init__(self) -> None:
        self._trial: list[str] = []  # suspects that run
        self._waiting: list[list[str]] = []  # groups that wait for their trial; the last one is next

    @property
    def active(self) -> bool:
        """Whether there are suspects."""
        return bool(self._trial)

    def died(self, members: Sequence[str], proven: Collection[str]) -> Verdict:
        """The engine died in a step of these requests, those first that came first. proven: requests that have given
        as much since this engine began to run them that they are not the cause."""
        trial, self._trial = self._trial, []
        suspects = [name for name in members if name in trial]
        verdict = Verdict(isolating=bool(suspects) and len(trial) > 1)
        if len(trial) == 1 and suspects and all(name in proven for name in members if name not in trial):
            verdict = Verdict(suspects[0], isolating=True)
            suspects = []
        elif not suspects:  # somebody else did it
            suspects = list(members)
            if trial:
                self._waiting.append(trial)
        half = (len(suspects) + 1) // 2
        self._waiting += [group for group in (suspects[half:], suspects[:half]) if group]
        self._begin()
        return verdict

    def admits(self, name: str) -> bool:
        """Whether this request may run now. Beside the last one of a group nobody else begins to."""
        if name in self._trial:
            return True
        return len(self._trial) != 1 and not any(name in group for group in self._waiting)

    def settle(self, proven: Callable[[str], bool]) -> bool:
        """Look who is cleared. True if others may run now."""
        before = len(self._trial)
        self._trial = [name for name in self._trial if not proven(name)]
        if before and not self._trial:
            self._begin()
            return True
        return False

    def left(self, name: str) -> bool:
        """A request is over. True if others may run now."""
        self._waiting = [rest for group in self._waiting if (rest := [each for each in group if each != name])]
        return self.settle(lambda each: each == name)

    def _begin(self) -> None:
        if self._waiting:
            self._trial = self._waiting.pop()
