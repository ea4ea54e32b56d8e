"""Limits of a key and what it has used: the sums against a model under random requests; then a live server, where every
request counts once and gives its place back however it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import RateLimited
from octavo.request import Usage
from octavo.server.key_file import key_line
from octavo.server.quota import DAY, Accounts, Clocks, Meter
from octavo.server.tenants import Tenant
from tests import real
from tests.server.live import error_of, events
from tests.server.test_tenants import Keyed

# -- the sums ----------------------------------------------------------------------------------------------------------


class Times:
    """Clocks that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clocks = Clocks(lambda: self.now, lambda: 20_000 * DAY + self.now)


def sum_of(told: dict[str, int]) -> int:
    return told["prompt_tokens"] + told["generated_tokens"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(1, 50)),
        st.tuples(st.just("tokens"), st.integers(0, 7), st.integers(0, 30)),
        st.tuples(st.just("end"), st.integers(0, 7)),
        st.tuples(st.just("wait"), st.sampled_from((0.5, 7.0, 30.0, 100.0, DAY / 3))),
    ),
    max_size=60,
)
LIMITS = st.tuples(*[st.sampled_from((None, *some)) for some in ((1, 3), (40, 600), (100, 2000))])


@settings(max_examples=300, deadline=None)
@given(STEPS, LIMITS)
def test_limits_hold_and_nothing_is_counted_twice(steps: list[Any], limits: tuple[int | None, int | None, int | None]):
    """A model that keeps every token with its time: who is let in, who is refused, and when to come again."""
    times = Times()
    concurrent, minute, day = limits
    tenant = Tenant("a", concurrent=concurrent, tokens_per_minute=minute, tokens_per_day=day)
    account = Accounts(Path("/nonexistent/usage.json"), times.clocks).of(tenant)
    open_: list[tuple[Meter, list[int]]] = []
    requests, total, today, the_day = 0, 0, 0, 20_000
    owed, owed_at = 0.0, times.now  # of the minute

    def settled() -> None:
        nonlocal today, the_day
        if (now := 20_000 + int(times.now // DAY)) != the_day:
            the_day, today = now, 0

    def used(tokens: int) -> None:
        nonlocal total, today, owed
        settled()
        total, today, owed = total + tokens, today + tokens, owed + tokens

    for step in steps:
        settled()
        if step[0] == "wait":
            account.settle()
            times.now += step[1]
            settled()
        elif step[0] == "begin":
            owed = max(0.0, owed - (times.now - owed_at) * (minute or 0) / 60)
            owed_at = times.now
            spent = [step[1], 0]
            meter = Meter(account, tenant, lambda spent=spent: Usage(spent[0], spent[1]))  # type: ignore[misc]
            full = bool(concurrent) and len(open_) >= (concurrent or 0)
            refused = full or (bool(day) and today >= (day or 0)) or (bool(minute) and owed >= (minute or 0) + 1e-6)
            if refused:
                with pytest.raises(RateLimited) as told:
                    meter.begin()
                assert told.value.retry_after is not None and told.value.retry_after >= 1
            elif not (minute and abs(owed - minute) < 1e-6):
                meter.begin()
                requests += 1
                open_.append((meter, spent))
                used(step[1])
        elif open_:
            meter, spent = open_[step[1] % len(open_)]
            if step[0] == "tokens":
                spent[1] += step[2]
                used(step[2])
            else:
                meter.end()
                meter.end()
                open_.remove((meter, spent))
        account.settle()
        assert len(account.open) == len(open_)
        kept = account.told(tenant)
        assert (kept["total"]["requests"], sum_of(kept["total"]), account.today.tokens) == (
            requests,
            total,
            today,
        )


def test_a_limit_that_is_set_later_counts_from_then_on() -> None:
    """What a key used while it had no limit by the minute is no debt when the file of keys gives it one."""
    times = Times()
    account = Accounts(Path("/nonexistent/usage.json"), times.clocks).of(Tenant("a"))
    for _ in range(10):
        meter = Meter(account, Tenant("a"), lambda: Usage(5_000, 5_000))
        meter.begin()
        meter.end()
        times.now += 60
    account.check(Tenant("a"))  # the last call before the new file
    assert account.headers(Tenant("a", tokens_per_minute=1_000))["x-ratelimit-remaining-tokens"] == "1000"


def test_a_debt_is_paid_before_anything_is_let_in() -> None:
    """An answer that goes on beyond the limit is not cut; the key waits as long as that takes to come back."""
    times = Times()
    tenant = Tenant("a", tokens_per_minute=600)
    account = Accounts(Path("/nonexistent/usage.json"), times.clocks).of(tenant)
    spent = [0]
    meter = Meter(account, tenant, lambda: Usage(100, spent[0]))
    meter.begin()
    spent[0] = 1000
    with pytest.raises(RateLimited, match="600 tokens of the minute") as told:
        account.check(tenant)
    assert told.value.retry_after == 50  # 500 tokens too many, 10 a second
    assert told.value.headers == {
        "x-ratelimit-limit-tokens": "600", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "110s",
    }  # fmt: skip
    meter.end()
    times.now += 49.9
    with pytest.raises(RateLimited):
        account.check(tenant)
    times.now += 0.2
    account.check(tenant)
    account.check(Tenant("a", concurrent=1))


def test_a_day_ends_at_midnight() -> None:
    times = Times()
    tenant = Tenant("a", tokens_per_day=10)
    account = Accounts(Path("/nonexistent/usage.json"), times.clocks).of(tenant)
    meter = Meter(account, tenant, lambda: Usage(10, 0))
    meter.begin()
    meter.end()
    with pytest.raises(RateLimited, match="of the day") as told:
        account.check(tenant)
    assert told.value.retry_after == DAY - 1000
    times.now = DAY + 1.0
    account.check(tenant)
    assert account.told(tenant)["today"] == {
        "date": "2024-10-05", "requests": 0, "prompt_tokens": 0, "cached_tokens": 0, "generated_tokens": 0,
    }  # fmt: skip
    assert account.told(tenant)["total"]["prompt_tokens"] == 10


def ran(accounts: Accounts, name: str, tokens: int) -> None:
    tenant = Tenant(name)
    meter = Meter(accounts.of(tenant), tenant, lambda: Usage(tokens, 0))
    meter.begin()
    meter.end()


async def test_a_file_that_is_broken_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "state" / "usage.json"
    path.parent.mkdir()
    for broken in (b"", b"[]", b'{"a": {"day": 1}}'):
        path.write_bytes(broken)
        accounts = Accounts(path)
        assert accounts.told([Tenant("a")], True)[0]["total"]["requests"] == 0
        ran(accounts, "a", 5)
        await accounts.save()
        assert Accounts(path).told([Tenant("a")], True) == accounts.told([Tenant("a")], True)


async def test_servers_share_a_file(tmp_path: Path) -> None:
    """Each adds what it has counted; a limit of the day holds for all of them together; a day that is over counts in
    the total alone."""
    times, path = Times(), tmp_path / "usage.json"
    first, second = Accounts(path, times.clocks), Accounts(path, times.clocks)
    for number in range(3):
        ran(first, "a", 10)
        ran(second, "a", 100)
        ran(second, f"only{number}", 1)
        for accounts in (first, second, first):
            ran(accounts, "a", 1)
            await accounts.save()
    told = [accounts.told([Tenant("a")], False)[0] for accounts in (first, Accounts(path, times.clocks))]
    assert told[0] == told[1] and told[0]["today"].items() >= told[0]["total"].items()
    assert (sum_of(told[0]["total"]), told[0]["total"]["requests"]) == (3 * 113, 15)
    with pytest.raises(RateLimited):
        first.of(Tenant("a")).check(Tenant("a", tokens_per_day=339))
    assert {each["key"] for each in first.told([], True)} == {"a", "only0", "only1", "only2"}

    ran(first, "a", 7)
    times.now += DAY
    ran(second, "a", 2)
    for accounts in (first, second, first):
        await accounts.save()
    (told_first,) = first.told([Tenant("a")], False)
    (told_file,) = Accounts(path, times.clocks).told([Tenant("a")], False)
    assert sum_of(told_file["total"]) == 3 * 113 + 9 and told_file["today"]["prompt_tokens"] == 2
    assert sum_of(told_first["total"]) in (3 * 113 + 7, 3 * 113 + 9)  # it learns of others when it has something new


async def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    accounts = Accounts(blocked / "usage.json")
    ran(accounts, "a", 5)
    for _ in range(2):
        with pytest.raises(OSError):
            await accounts.save()
    blocked.unlink()
    await accounts.save()
    assert sum_of(Accounts(blocked / "usage.json").told([Tenant("a")], False)[0]["total"]) == 5


# -- a live server -----------------------------------------------------------------------------------------------------

LINES = [
    key_line("free", "sk-free", []),
    key_line("two", "sk-two", ["concurrent=2"]),
    key_line("minute", "sk-minute", ["tokens-per-minute=100"]),
    key_line("day", "sk-day", ["tokens-per-day=40"]),
    key_line("ops", "sk-ops", ["admin"]),
]
ENDLESS: dict[str, Any] = {"prompt": "Once", "max_tokens": 900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    made = Keyed(tmp_path_factory.mktemp("quota"), LINES, "--stream-grace", "0")
    yield made
    assert made.stop() == 0


def used(server: Keyed, name: str) -> dict[str, Any]:
    (found,) = [each for each in server.ask("ops", "GET", "/v1/usage").json()["data"] if each["key"] == name]
    return dict(found)


def until_open(server: Keyed, name: str, count: int) -> None:
    end = time.monotonic() + 20
    while used(server, name)["open_requests"] != count:
        assert time.monotonic() < end
        time.sleep(0.02)


@contextlib.contextmanager
def streams(server: Keyed, key: str, count: int) -> Iterator[list[Iterator[str]]]:
    """So many endless streams that have begun; leaving closes their connections."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            headers = {"x-api-key": f"sk-{key}"}
            asked = httpx.stream("POST", f"{server.url}/v1/completions", json=ENDLESS, headers=headers, timeout=60)
            pieces = stack.enter_context(asked).iter_text()
            next(pieces)
            made.append(pieces)
        yield made


PATHS = {
    "/v1/chat/completions": {}, "/v1/completions": {}, "/v1/responses": {"input": "a"}, "/v1/messages": {},
    "/api/chat": {}, "/api/generate": {}, "/completion": {},
}  # fmt: skip


def test_so_many_at_once(server: Keyed) -> None:
    """In the shape of each dialect; another key is not concerned; who leaves gives the place back."""
    asked = {"model": "default", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "max_tokens": 2}
    with streams(server, "two", 2):
        for path, more in PATHS.items():
            refused = server.ask("two", "POST", path, json={**asked, **more})
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1, (path, refused.text)
            assert "at most 2 may be" in error_of(refused)["message"]
        assert server.ask("free", "POST", "/v1/completions", json=asked).status_code == 200
        assert used(server, "two")["open_requests"] == 2
        with openai.OpenAI(base_url=server.url + "/v1", api_key="sk-two", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as told:
                client.completions.create(model="default", prompt="a")
            assert told.value.code == "rate_limit_exceeded"
    until_open(server, "two", 0)
    assert server.ask("two", "POST", "/v1/completions", json=asked).status_code == 200


ENDINGS: dict[str, Callable[[Keyed], Any]] = {
    "ends": lambda server: server.ask("two", "POST", "/v1/completions", json={"prompt": "a", "max_tokens": 3}),
    "is refused": lambda server: server.ask("two", "POST", "/v1/completions", json={"prompt": "a", "top_p": 7}),
    "is too long": lambda server: server.ask("two", "POST", "/v1/completions", json={"prompt": "a " * 5000}),
    "is late": lambda server: server.ask(
        "two", "POST", "/v1/completions", json={"prompt": "word " * 900}, headers={"x-request-deadline-ms": "1"}
    ),
    "cannot go on": lambda server: server.ask(
        "two", "POST", "/v1/completions", json={"prompt": "a", "allowed_token_ids": [5], "bad_words": ["!"] * 2000}
    ),
    "has several": lambda server: server.ask(
        "two", "POST", "/v1/completions", json={"prompt": ["a", "b"], "n": 2, "max_tokens": 3}
    ),
    "thinks in the background": lambda server: server.ask(
        "two", "POST", "/v1/responses", json={"input": "a", "background": True, "max_output_tokens": 20}
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_place_comes_back_however_it_ends(server: Keyed, ending: str) -> None:
    for _ in range(3):  # more than the places
        assert ENDINGS[ending](server).status_code != 429
        until_open(server, "two", 0)


def test_an_engine_that_dies_counts_nothing_twice(server: Keyed) -> None:
    before = used(server, "two")
    with streams(server, "two", 2) as begun:
        server.engine().send_signal(signal.SIGKILL)
        assert server.ask("two", "POST", "/v1/completions", json={"prompt": "a"}).status_code == 429
        for pieces in begun:
            *_, last = events("".join(pieces))[:-1]
            assert last["choices"][0]["finish_reason"] == "length"
    until_open(server, "two", 0)
    after = used(server, "two")
    assert after["total"]["requests"] - before["total"]["requests"] == 2
    assert after["total"]["generated_tokens"] - before["total"]["generated_tokens"] == 2 * 900


def test_tokens_a_minute(server: Keyed) -> None:
    """What answers say that they used is what counts, and each answer tells what is left."""
    body = {"prompt": "one two three", "max_tokens": 20, "ignore_eos": True}
    spent, answers = 0, 0
    while (answer := server.ask("minute", "POST", "/v1/completions", json=body)).status_code == 200:
        spent += answer.json()["usage"]["total_tokens"]
        answers += 1
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert answer.headers["x-ratelimit-limit-tokens"] == "100" and 0 <= left < 100
        assert answers < 60
    assert spent >= 100
    assert answer.status_code == 429 and "of the minute" in error_of(answer)["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 15  # one answer too many at most: 23 tokens of 100 a minute
    assert (
        answer.headers["x-ratelimit-remaining-tokens"] == "0" and answer.headers["x-ratelimit-reset-tokens"][-1] == "s"
    )
    told = used(server, "minute")["today"]
    assert (told["requests"], told["prompt_tokens"] + told["generated_tokens"]) == (answers, spent)


def test_tokens_a_day_and_usage_survive_a_restart(tmp_path: Path) -> None:
    server = Keyed(tmp_path, LINES)
    body = {"prompt": "one two three", "max_tokens": 20, "ignore_eos": True}
    try:
        assert server.ask("day", "POST", "/v1/completions", json=body).status_code == 200
        assert server.ask("day", "POST", "/v1/completions", json=body).status_code == 200
        before = server.ask("day", "GET", "/v1/usage").json()
        assert [each["key"] for each in before["data"]] == ["day"]  # its own alone
        assert before["data"][0]["limits"] == {"concurrent": None, "tokens_per_minute": None, "tokens_per_day": 40}
    finally:
        assert server.stop() == 0
    server = Keyed(tmp_path, LINES[3:])
    try:
        assert server.ask("day", "GET", "/v1/usage").json() == before
        refused = server.ask("day", "POST", "/v1/completions", json=body)
        assert refused.status_code == 429 and "of the day" in error_of(refused)["message"]
        every = {each["key"]: each for each in server.ask("ops", "GET", "/v1/usage").json()["data"]}
        assert every["day"] == before["data"][0] and {"ops", "day"} <= set(every)
        assert json.loads((tmp_path / "usage.json").read_text())["day"]["total"]["requests"] == 2
        assert (tmp_path / "usage.json").stat().st_mode & 0o077 == 0
    finally:
        assert server.stop() == 0


def test_vectors_count(tmp_path: Path) -> None:
    server = Keyed(tmp_path, [key_line("two", "sk-two", ["tokens-per-day=10"])], model=real.minilm())
    try:
        made = server.ask("two", "POST", "/v1/embeddings", json={"input": ["one two", "three", "four"]}).json()
        (told,) = server.ask("two", "GET", "/v1/usage").json()["data"]
        assert told["total"]["prompt_tokens"] == made["usage"]["prompt_tokens"] and told["total"]["requests"] == 1
        for path, body in (("/v1/embeddings", {"input": "a"}), ("/api/embed", {"input": "a"}),
                           ("/v1/score", {"text_1": "a", "text_2": "b"}), ("/pooling", {"input": "a"})):  # fmt: skip
            assert server.ask("two", "POST", path, json=body).status_code == 429, path
    finally:
        assert server.stop() == 0
