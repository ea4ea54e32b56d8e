"""A client that lost its connection takes its stream up again: every event once, in order, with the same key only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.errors import InvalidRequest, NotFound
from octavo.server import kept
from octavo.server.kept import Kept
from octavo.server.sse import ClientGone
from tests.server.live import Live, error_of

ALICE, BOB = b"alice", b"bob"


class Paused:
    """A source of numbered events that the test lets out one by one."""

    def __init__(self, count: int) -> None:
        self.left = [b"data: %d\n\n" % number for number in range(count)]
        self.running = self.closed = False
        self.starts = 0
        self.news: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        return not self.left

    async def start(self, news: Callable[[], None]) -> None:
        assert not self.running
        self.running, self.news = True, news
        self.starts += 1

    def take(self) -> bytes | None:
        return self.left.pop(0) if self.left and self.running else None

    def pause(self) -> None:
        assert self.running
        self.running = False

    def close(self) -> None:
        self.running, self.closed = False, True


def idle() -> bytes:
    return b"data: idle\n\n"


async def test_every_event_comes_once() -> None:
    store, source = Kept(5.0), Paused(9)
    first, _ = store.read("a", source, ALICE, idle)
    await first.start(lambda: None)
    got = [first.take(), first.take(), first.take()]
    first.close()
    assert not source.running and not source.closed
    second, more = store.take_up("a", 2, ALICE)  # the third event was lost on the way
    await second.start(lambda: None)
    got = [*got[:2], second.take(), second.take()]
    assert more() == b"data: idle\n\n"  # counts as an event, as clients count it
    second.close()
    third, _ = store.take_up("a", 5, ALICE)
    await third.start(lambda: None)
    while not third.done:
        got.append(third.take())
    assert b"".join(each or b"" for each in got) == b"".join(b"data: %d\n\n" % n for n in range(9))
    third.close()
    assert source.closed and source.starts == 3
    last, _ = store.take_up("a", 8, ALICE)  # the end was lost; it is still known
    await last.start(lambda: None)
    assert last.take() == b"data: 7\n\ndata: 8\n\n" and last.done
    last.close()


async def test_a_new_connection_takes_the_stream_from_an_old_one() -> None:
    """The server need not have noticed that the old one is dead."""
    store, source = Kept(5.0), Paused(4)
    told = asyncio.Event()
    old, _ = store.read("a", source, ALICE, idle)
    await old.start(told.set)
    told.clear()
    assert old.take()
    new, _ = store.take_up("a", 0, ALICE)
    assert told.is_set()
    await new.start(lambda: None)
    with pytest.raises(ClientGone):
        old.take()
    old.close()
    assert source.running and source.starts == 1 and new.take() == b"data: 0\n\n" and new.take() == b"data: 1\n\n"
    new.close()


async def test_what_is_refused() -> None:
    store, source = Kept(5.0), Paused(3)
    reader, _ = store.read("a", source, ALICE, idle)
    await reader.start(lambda: None)
    reader.take()
    reader.close()
    for id_, caller in (("b", ALICE), ("a", BOB)):
        with pytest.raises(NotFound, match="no stream"):
            store.take_up(id_, 0, caller)
    with pytest.raises(InvalidRequest, match="0 to 1"):
        store.take_up("a", 2, ALICE)
    store.take_up("a", 1, ALICE)


async def test_it_is_kept_for_so_long_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_LEFT", 2)
    store = Kept(0.05)
    sources = [Paused(3) for _ in range(4)]
    for number, source in enumerate(sources):
        reader, _ = store.read(str(number), source, ALICE, idle)
        await reader.start(lambda: None)
        if number != 3:
            reader.take()
        reader.close()
    assert [source.closed for source in sources] == [True, False, False, True]  # too many; nobody heard of the last one
    await asyncio.sleep(0.2)
    assert all(source.closed for source in sources)
    with pytest.raises(NotFound):
        store.take_up("1", 0, ALICE)
    store = Kept(0.0)
    source = Paused(1)
    assert store.read("a", source, ALICE, idle)[0] is source


async def test_an_id_that_is_used_again() -> None:
    store, sources = Kept(5.0), [Paused(3), Paused(3)]
    first, _ = store.read("a", sources[0], ALICE, idle)
    await first.start(lambda: None)
    first.take()
    second, _ = store.read("a", sources[1], ALICE, idle)
    assert first.take() == b"data: 1\n\n"  # its own client still reads it
    first.close()
    assert sources[0].closed
    await second.start(lambda: None)
    second.take()
    second.close()
    store.read("a", Paused(1), ALICE, idle)
    assert sources[1].closed


async def test_the_record_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_BYTES", 30)
    store, source = Kept(5.0), Paused(9)
    reader, _ = store.read("a", source, ALICE, idle)
    await reader.start(lambda: None)
    assert [reader.take() for _ in range(9)] == [b"data: %d\n\n" % number for number in range(9)]
    reader.close()
    with pytest.raises(InvalidRequest, match="from must be 6 to 9"):
        store.take_up("a", 5, ALICE)
    again, _ = store.take_up("a", 6, ALICE)
    await again.start(lambda: None)
    assert again.take() == b"data: 6\n\ndata: 7\n\ndata: 8\n\n"


# -- a live server -----------------------------------------------------------------------------------------------------


def events(response: httpx.Response, most: int | None = None) -> list[str]:
    """The data of a stream; of its first so many events."""
    found = []
    for line in response.iter_lines():
        if line.startswith("data: "):
            found.append(line[6:])
            if len(found) == most:
                break
    return found


def plain(found: list[str]) -> list[Any]:
    made = [each if each == "[DONE]" else json.loads(each) for each in found]
    for each in made:
        if each != "[DONE]":
            for key in ("id", "created", "timings"):
                each.pop(key, None)
    return made


def of_choice(found: list[Any], index: int) -> list[Any]:
    """What is said of a choice; the seed and the usage of the last chunk apart."""
    return [choice for each in found if each != "[DONE]" for choice in each["choices"] if choice["index"] == index]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_lost_stream_is_the_same_stream(live: Live, path: str) -> None:
    """Left in the midst three times: blocks are free meanwhile, and all events together are those of a whole stream."""
    prompt = {"messages": [{"role": "user", "content": "Count up."}]} if "chat" in path else {"prompt": "1 2 3", "n": 2}
    body = {**prompt, "stream": True, "seed": 5, "temperature": 0.9, "max_tokens": 120, "ignore_eos": True}
    with httpx.stream("POST", live.url + path, json=body) as response:
        whole = events(response)
    with httpx.stream("POST", live.url + path, json=body) as response:
        got = events(response, 7)
    id_ = json.loads(got[0])["id"]
    for _ in range(2):
        live.wait_idle(2.0)
        assert live.metric("kv_cache_usage_perc") == 0
        with httpx.stream("GET", f"{live.url}/v1/stream/{id_}?from={len(got)}") as response:
            assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
            got += events(response, 20)
    with httpx.stream("GET", f"{live.url}/v1/stream/{id_}?from={len(got)}") as response:
        got += events(response)
    for index in (0, 1):  # choices go on side by side, in whatever order their pieces come
        assert of_choice(plain(got), index) == of_choice(plain(whole), index)
    assert len(got) == len(whole) and got[-1] == "[DONE]"
    again = httpx.get(f"{live.url}/v1/stream/{id_}?from={len(got) - 1}")
    assert again.text == "data: [DONE]\n\n"


def test_who_may_take_up_what(tmp_path: Path) -> None:
    live = Live(tmp_path, "--api-key", "alpha", "--api-key", "beta", "--stream-grace", "1")
    body = {"prompt": "1 2 3", "stream": True, "max_tokens": 500, "ignore_eos": True}
    alpha, beta = {"authorization": "Bearer alpha"}, {"authorization": "Bearer beta"}
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body, headers=alpha) as response:
        id_ = json.loads(events(response, 3)[0])["id"]
    url = f"{live.url}/v1/stream/{id_}"
    assert httpx.get(url).status_code == 401
    foreign = httpx.get(url, headers=beta)
    assert foreign.status_code == 404 and error_of(foreign)["code"] == "stream_not_found"
    for wrong in ("-1", "x", "9999", "1" * 12):
        told = httpx.get(f"{url}?from={wrong}", headers=alpha)
        assert told.status_code == 400 and error_of(told)["param"] == "from"
    with httpx.stream("GET", f"{url}?from=3", headers=alpha) as response:
        assert len(events(response, 5)) == 5
    time.sleep(1.5)
    assert httpx.get(f"{url}?from=3", headers=alpha).status_code == 404
    assert live.stop() == 0
