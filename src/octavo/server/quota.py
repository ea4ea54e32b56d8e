"""What each tenant has used, and whether it may ask for more: requests at once, tokens a minute, tokens a day.

A request counts while an answer of it is under way, its tokens as they come: what runs is asked when somebody wants to
know, so that a token costs nothing here. Tokens are those of prompts, found in the cache or not, and of answers. It
knows no key and no dialect.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from octavo.errors import RateLimited
from octavo.request import Usage
from octavo.server.tenants import Tenant
from octavo.server.usage_file import Counts, Kept, UsageFile

DAY = 86_400
MINUTE = 60.0
BUSY_SECONDS = 1.0  # after which a request may be over
NOTHING = Usage(0, 0)


@dataclass(frozen=True)
class Clocks:
    """monotonic: seconds, for minutes. wall: seconds since 1970, for days."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Account:
    """One tenant's. Its limits come with each call, so that a new file of keys holds at once."""

    def __init__(self, name: str, clocks: Clocks, kept: Kept | None = None) -> None:
        self.name = name
        self._clocks = clocks
        self._kept = kept or Kept(self._day(), Counts(), Counts())
        self._new = Kept(self._day(), Counts(), Counts())  # of it what the file does not have
        self.open: set[Meter] = set()
        self._minute = 0.0  # tokens that no refilling has paid for yet
        self._minute_at = clocks.monotonic()

    def _day(self) -> int:
        return int(self._clocks.wall() // DAY)

    def check(self, tenant: Tenant) -> None:
        """RateLimited if the tenant may begin nothing now."""
        used = self._used(tenant)
        if tenant.concurrent is not None and len(self.open) >= tenant.concurrent:
            raise self._refusal(
                f"{len(self.open)} requests are under way and at most {tenant.concurrent} may be", BUSY_SECONDS, tenant
            )
        if tenant.tokens_per_day is not None and self.today.tokens >= tenant.tokens_per_day:
            left = DAY - self._clocks.wall() % DAY
            raise self._refusal(f"all {tenant.tokens_per_day:,} tokens of the day are used", left, tenant)
        if tenant.tokens_per_minute is not None and (over := used - tenant.tokens_per_minute) >= 0:
            left = over * MINUTE / tenant.tokens_per_minute
            raise self._refusal(f"all {tenant.tokens_per_minute:,} tokens of the minute are used", left, tenant)

    def _refusal(self, why: str, seconds: float, tenant: Tenant) -> RateLimited:
        wait = max(1, math.ceil(seconds))
        told = f"The limit of the key {self.name} is reached: {why}. Try again in {wait:,} seconds."
        return RateLimited(told, retry_after=wait, headers=self.headers(tenant))

    def _used(self, tenant: Tenant) -> float:
        """Tokens of the minute: what was used, less what has come back since, a limit's worth each minute. Those that
        were made since somebody last asked count as spread evenly over that time."""
        self.settle()
        now = self._clocks.monotonic()
        if tenant.tokens_per_minute is None:  # a limit that a later file of keys sets asks nothing of before
            self._minute, self._minute_at = 0.0, now
            return 0.0
        back = (now - self._minute_at) * tenant.tokens_per_minute / MINUTE
        self._minute, self._minute_at = max(0.0, self._minute - back), now
        return self._minute

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """What OpenAI's API tells of a limit by the minute."""
        limit = tenant.tokens_per_minute
        if limit is None:
            return {}
        used = self._used(tenant)
        return {
            "x-ratelimit-limit-tokens": str(limit),
            "x-ratelimit-remaining-tokens": str(max(0, math.floor(limit - used))),
            "x-ratelimit-reset-tokens": f"{math.ceil(used * MINUTE * 1e3 / limit) / 1e3:g}s",
        }

    @property
    def today(self) -> Counts:
        """Of this day, what runs included."""
        self.settle()
        return self._kept.today

    def settle(self) -> None:
        """Count what runs as far as it is."""
        day = self._day()
        for kept in (self._kept, self._new):
            if kept.day != day:
                kept.day, kept.today = day, Counts()
        for meter in self.open:
            meter.settle()

    def count(self, usage: Usage, before: Usage) -> None:
        """A request that had used `before` has used `usage`."""
        for kept in (self._kept, self._new):
            kept.today.add(usage, before)
            kept.total.add(usage, before)
        tokens = usage.total_tokens - before.total_tokens
        self._minute = max(0.0, self._minute + tokens)

    def began(self) -> None:
        """A request more."""
        self.settle()
        for kept in (self._kept, self._new):
            kept.today.requests += 1
            kept.total.requests += 1

    def take(self) -> Kept:
        """What the file does not have; from now on it counts as written."""
        self.settle()
        new, self._new = self._new, Kept(self._day(), Counts(), Counts())
        return new

    def give_back(self, kept: Kept) -> None:
        """It was not written after all."""
        self._new = self._new.plus(kept)

    def written(self, kept: Kept) -> None:
        """The file has this now, what other servers counted included."""
        self._kept = kept.plus(self._new)

    def told(self, tenant: Tenant | None) -> dict[str, Any]:
        """For /v1/usage. tenant: None for one whose key is gone."""
        self.settle()
        kept = self._kept
        date = datetime.fromtimestamp(0, UTC) + timedelta(days=kept.day)
        made: dict[str, Any] = {
            "object": "usage",
            "key": self.name or None,
            "today": {"date": f"{date:%Y-%m-%d}", **msgspec.structs.asdict(kept.today)},
            "total": msgspec.structs.asdict(kept.total),
            "open_requests": len(self.open),
        }
        if tenant is not None:
            made["limits"] = {
                "concurrent": tenant.concurrent,
                "tokens_per_minute": tenant.tokens_per_minute,
                "tokens_per_day": tenant.tokens_per_day,
            }
        return made


class Meter:
    """One request of a tenant. usage: what it has used so far."""

    def __init__(self, account: Account, tenant: Tenant, usage: Callable[[], Usage]) -> None:
        self._account = account
        self._tenant = tenant
        self._usage = usage
        self._before = NOTHING
        self._counted = False

    def begin(self) -> None:
        """It runs from now on, for the first time or again. RateLimited if it may not."""
        self._account.check(self._tenant)
        if not self._counted:
            self._counted = True
            self._account.began()
        self._account.open.add(self)

    def end(self) -> None:
        """It does not run any more; twice is no error."""
        if self in self._account.open:
            self._account.settle()
            self._account.open.discard(self)

    def settle(self) -> None:
        """Count what was used since the last time."""
        usage = self._usage()
        self._account.count(usage, self._before)
        self._before = usage


class Accounts:
    """Those of all tenants; what they have used lies in a file, and is written by save()."""

    def __init__(self, path: Path, clocks: Clocks | None = None) -> None:
        self._file = UsageFile(path)
        self._clocks = clocks or Clocks()
        self._accounts = {name: Account(name, self._clocks, kept) for name, kept in self._file.read().items()}

    def of(self, tenant: Tenant) -> Account:
        """The tenant's."""
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(tenant.name, self._clocks)
        return account

    def told(self, tenants: Sequence[Tenant], every: bool) -> list[dict[str, Any]]:
        """For /v1/usage: these tenants', and with `every` those whose key is gone."""
        known = {tenant.name: tenant for tenant in tenants}
        for tenant in tenants:
            self.of(tenant)
        names = self._accounts if every else known
        return [self._accounts[name].told(known.get(name)) for name in names]

    async def save(self) -> None:
        """Write what is new, and take over what other servers have written. Raises OSError."""
        taken = {name: account.take() for name, account in self._accounts.items()}
        counted = {name: kept for name, kept in taken.items() if kept.total != Counts()}
        if not counted:
            return
        try:
            merged = await asyncio.to_thread(self._file.add, counted)
        except OSError:
            for name, kept in counted.items():
                self._accounts[name].give_back(kept)
            raise
        for name, kept in merged.items():
            self.of(Tenant(name)).written(kept)
