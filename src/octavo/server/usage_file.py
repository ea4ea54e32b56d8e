"""The file of what tenants have used, which several servers may share: each adds what it has counted since it last
wrote, and takes over what the others have. It knows no limits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from octavo import logs
from octavo.request import Usage
from octavo.server.whole_file import write


class Counts(msgspec.Struct):
    """Of a day, or of all days."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompt_tokens
    generated_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens

    def add(self, usage: Usage, before: Usage) -> None:
        """What was used since `before`."""
        self.prompt_tokens += usage.prompt_tokens - before.prompt_tokens
        self.cached_tokens += usage.cached_tokens - before.cached_tokens
        self.generated_tokens += usage.completion_tokens - before.completion_tokens

    def plus(self, other: Counts) -> Counts:
        """The sum."""
        return Counts(
            *(a + b for a, b in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True))
        )


class Kept(msgspec.Struct):
    """A tenant's counts. day: days since 1970, UTC."""

    day: int
    today: Counts
    total: Counts

    def plus(self, other: Kept) -> Kept:
        """The sum; `today` is that of the later day."""
        days = [each.today for each in (self, other) if each.day == max(self.day, other.day)]
        today = days[0] if len(days) == 1 else days[0].plus(days[1])
        return Kept(max(self.day, other.day), today, self.total.plus(other.total))


class UsageFile:
    """Calls touch the disk: make them in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Kept]:
        """By the names of tenants. A file that is broken counts as none."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Kept])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            logs.get("server").error("usage begins anew, %s cannot be read: %s", self._path, error)
            return {}

    def add(self, counted: dict[str, Kept]) -> dict[str, Kept]:
        """Add to what is there; what there is then. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone():
            made = self.read()
            for name, kept in counted.items():
                made[name] = made[name].plus(kept) if name in made else kept
            write(self._path, msgspec.json.encode(made))
        return made

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other server writes meanwhile."""
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
