"""What each tenant has used, and whether it may ask for more: requests at once, tokens a minute, tokens a day.

A request counts while an answer of it is under way, its tokens as they come: what runs is asked when somebody wants to
know, so that a token costs nothing here. Tokens are those of prompts, found in the cache or not, and of answers. It
knows no key and no dialect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from octavo import logs
from octavo.errors import RateLimited
from octavo.request import Usage
from octavo.server.tenants import Tenant

DAY = 86_400
MINUTE = 60.0
BUSY_SECONDS = 1.0  # after which a request may be over
NOTHING = Usage(0, 0)


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


class Kept(msgspec.Struct):
    """An account as it lies on disk. day: days since 1970, UTC."""

    day: int
    today: Counts
    total: Counts


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
        self.open: set[Meter] = set()
        self._minute = 0.0  # tokens that no refilling has paid for yet
        self._minute_at = clocks.monotonic()

    def _day(self) -> int:
        return int(self._clocks.wall() // DAY)

    def check(self, tenant: Tenant) -> None:
        """RateLimited if the tenant may begin nothing now."""
        if tenant.concurrent is not None and len(self.open) >= tenant.concurrent:
            raise self._refusal(
                f"{len(self.open)} requests are under way and at most {tenant.concurrent} may be", BUSY_SECONDS, tenant
            )
        if tenant.tokens_per_day is not None and self.today.tokens >= tenant.tokens_per_day:
            left = DAY - self._clocks.wall() % DAY
            raise self._refusal(f"all {tenant.tokens_per_day:,} tokens of the day are used", left, tenant)
        if tenant.tokens_per_minute is not None and (over := self._used(tenant) - tenant.tokens_per_minute) >= 0:
            left = over * MINUTE / tenant.tokens_per_minute
            raise self._refusal(f"all {tenant.tokens_per_minute:,} tokens of the minute are used", left, tenant)

    def _refusal(self, why: str, seconds: float, tenant: Tenant) -> RateLimited:
        wait = max(1, math.ceil(seconds))
        told = f"The limit of the key {self.name} is reached: {why}. Try again in {wait:,} seconds."
        return RateLimited(told, retry_after=wait, headers=self.headers(tenant))

    def _used(self, tenant: Tenant) -> float:
        """Tokens of the minute: what was used, less what has come back since, a limit's worth each minute."""
        self.settle()
        now = self._clocks.monotonic()
        back = (now - self._minute_at) * (tenant.tokens_per_minute or 0) / MINUTE
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
        if self._kept.day != (day := self._day()):
            self._kept.day, self._kept.today = day, Counts()
        for meter in self.open:
            meter.settle()

    def count(self, usage: Usage, before: Usage) -> None:
        """A request that had used `before` has used `usage`."""
        for counts in (self._kept.today, self._kept.total):
            counts.add(usage, before)
        tokens = usage.total_tokens - before.total_tokens
        self._minute = max(0.0, self._minute + tokens)

    def began(self) -> None:
        """A request more."""
        self.settle()
        self._kept.today.requests += 1
        self._kept.total.requests += 1

    def kept(self) -> Kept:
        """To be written to disk."""
        self.settle()
        return self._kept

    def told(self, tenant: Tenant | None) -> dict[str, Any]:
        """For /v1/usage. tenant: None for one whose key is gone."""
        kept = self.kept()
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
    """Those of all tenants, in a file of the state directory."""

    def __init__(self, path: Path, clocks: Clocks | None = None) -> None:
        self._path = path
        self._clocks = clocks or Clocks()
        self._accounts: dict[str, Account] = {}
        self._written = b""
        try:
            self._written = path.read_bytes()
            for name, kept in msgspec.json.decode(self._written, type=dict[str, Kept]).items():
                self._accounts[name] = Account(name, self._clocks, kept)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            logs.get("server").error("usage begins anew, %s cannot be read: %s", path, error)

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

    def data(self) -> bytes | None:
        """What is to be written to the file; None if it is there already."""
        made = msgspec.json.encode({name: account.kept() for name, account in self._accounts.items()})
        if made == self._written or not self._accounts:
            return None
        self._written = made
        return made

    @property
    def path(self) -> Path:
        return self._path
