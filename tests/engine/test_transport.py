"""Frames and sockets: broken ones die alone, the path is private, a slow front does not hold the engine."""

import asyncio
import os
import random
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import errors
from octavo.engine import messages, transport
from octavo.engine.client import EngineClient
from octavo.engine.core import EngineCore
from octavo.engine.flight_record import FlightRecord
from octavo.engine.loop import EngineLoop
from octavo.engine.messages import (
    MAX_FRAME,
    VERSION,
    Answer,
    Ask,
    BrokenMessage,
    ChoiceOutput,
    EngineInfo,
    ErrorRecord,
    Hello,
    Outputs,
    PromptOutput,
    Shutdown,
    Submit,
    Tokens,
    decode_engine,
    decode_front,
    encode,
)
from octavo.engine.transport import FrameReader, SocketLink, SocketPort, frame
from octavo.execution.step import TokenLogprobs
from octavo.grammar.table import MaskTable
from octavo.request import FinishReason, Request, Resume
from octavo.sampling_params import SamplingParams
from tests.engine.scripted_runner import build

REQUEST = Request(
    "a", (1, 2, 3), SamplingParams(n=2, seed=2**63 + 5, stop=["x"], logit_bias={7: -1.5}, allowed_token_ids=[1, 2]),
    2**64 - 1, bad_word_ids=((1, 2), (3,)), salt="s", resume=(Resume(1, (4, 5)),),
)  # fmt: skip


def test_messages_survive_the_wire():
    output = ChoiceOutput(
        "a", 1, 3, [4], [TokenLogprobs(4, -0.5, 2, ((9, -0.1), (4, -0.5)))], FinishReason.STOP, 4, None,
        PromptOutput(16, [TokenLogprobs(1, float("-inf"), 9)]),
    )  # fmt: skip
    for message in (Submit(3, REQUEST), Ask(3, 1, "stats"), Shutdown(3)):
        assert decode_front(encode(message)) == message
    columns = Tokens(3, 9, messages.pack_who([("a", 0), ("b", 1)]), [5, 6], [1, 2, 3, 4])
    for message in (
        Outputs(3, 9, [output]),
        columns,
        Hello(VERSION, 3, EngineInfo("m", 10, 20, (0,), "f", 30, ("line",))),
    ):
        assert decode_engine(encode(message)) == message


@pytest.mark.parametrize(
    ("who", "indices", "ids"), [(b"\xc1", [0], [1]), ([("a", 0)], [0, 1], [1, 2]), ([("a", 0), ("b", 0)], [0, 0], [1])]
)
def test_columns_that_do_not_fit_are_broken_messages(who, indices, ids):
    packed = who if isinstance(who, bytes) else messages.pack_who(who)
    with pytest.raises(BrokenMessage):
        EngineClient()._received(Tokens(0, 1, packed, indices, ids))


def test_errors_survive_the_wire():
    given = [
        errors.QueueFull("full", retry_after=3.5),
        errors.ContextLengthExceeded(10, 11),
        errors.InvalidRequest("bad", param="prompt"),
        errors.DoesNotFit("big"),
        errors.EngineDied("dead", begun=True),
    ]
    for error in given:
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(ErrorRecord.of(error)), type=ErrorRecord).error()
        assert type(again) is type(error) and again.to_openai() == error.to_openai()
        assert (again.status, again.retry_after, again.exit_code) == (error.status, error.retry_after, error.exit_code)
    assert type(ErrorRecord("os", "no class of ours", 500).error()) is errors.OctavoError


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_frames_come_out_whole_however_they_are_cut(payloads, data):
    stream = b"".join(struct.pack("<I", len(each)) + each for each in payloads)
    reader, found, at = FrameReader(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 64))
        found += reader.feed(stream[at : at + size])
        at += size
    assert found == payloads


@given(st.binary(max_size=400))
def test_no_bytes_break_the_decoders(data):
    for decode in (decode_front, decode_engine):
        try:
            decode(data)
        except BrokenMessage:
            continue


def test_values_out_of_range_are_broken_messages():
    record = msgspec.msgpack.decode(encode(Submit(1, REQUEST)))
    record["request"]["params"]["temperature"] = -1.0
    with pytest.raises(BrokenMessage, match="temperature"):
        decode_front(msgspec.msgpack.encode(record))


class Served:
    """An engine over a socket, in a thread of this process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "engine.sock"
        self.port = SocketPort(self.path)
        self.flight = FlightRecord(64)
        self.core = EngineCore(build({"delay": 0.001}), self.flight, epoch=1)
        self.loop = EngineLoop(self.core, self.port, self.flight)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.serve()
        except BaseException as error:
            self.error = error
            raise

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(5)
        connection.connect(str(self.path))
        return connection


def receive(connection: socket.socket) -> object:
    """The next message of the engine."""
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack("<I", data[:4])[0]:
        wanted = 4 if len(data) < 4 else 4 + struct.unpack("<I", data[:4])[0]
        more = connection.recv(wanted - len(data))
        if not more:
            raise EOFError
        data += more
    return decode_engine(data[4:])


def outputs(connection: socket.socket) -> list[tuple[int, list[int], FinishReason | None]]:
    """(index, ids, finish) of the only request's outputs in the next message, in either of its shapes."""
    message = receive(connection)
    if isinstance(message, Tokens):
        assert len(messages.unpack_who(message.who)) == len(message.indices) == 1
        return [(message.indices[0], message.ids, None)]
    assert isinstance(message, Outputs)
    return [(item.index, item.token_ids, item.finish) for item in message.items]


def wait_for(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    with made.connect() as last:
        receive(last)
        last.sendall(frame(Shutdown(1)))
        made.thread.join(10)
    made.port.close()
    made.flight.close()
    assert made.error is None and not made.thread.is_alive() and not made.path.exists()


def request(name: str, tokens: int = 20) -> Request:
    return Request(name, (3, 1, 2), SamplingParams(max_tokens=tokens, ignore_eos=True), seed=5)


def test_the_path_is_private(served):
    assert stat.S_IMODE(os.stat(served.path).st_mode) == 0o600


def test_shared_memory_has_no_name():
    flight, table = FlightRecord(64), MaskTable(2, 100)
    for descriptor in (flight.descriptor, table.descriptor):
        link = os.readlink(f"/proc/self/fd/{descriptor}")
        assert link.startswith("/memfd:octavo-") and link.endswith(" (deleted)") and not os.get_inheritable(descriptor)
    flight.close()
    table.close()


def test_a_request_over_a_plain_socket(served):
    with served.connect() as front:
        hello = receive(front)
        assert isinstance(hello, Hello) and hello.version == VERSION and hello.info.vocab_size == 1000
        front.sendall(frame(Submit(1, request("r"))))
        ids: list[int] = []
        ended = False
        while not ended:
            for index, new, finish in outputs(front):
                assert index == len(ids)
                ids += new
                ended = finish is not None
        assert len(ids) == 20 and finish is FinishReason.LENGTH


RANDOM = random.Random(7).randbytes(3000)
BROKEN = {
    "random": RANDOM,
    "oversized": struct.pack("<I", MAX_FRAME + 1) + b"x" * 100,
    "huge": b"\xff\xff\xff\xff",
    "empty frame": struct.pack("<I", 0),
    "no message": struct.pack("<I", 5) + b"hello",
    "unknown tag": struct.pack("<I", 12) + msgspec.msgpack.encode({"type": "Nope"})[:12].ljust(12, b"\0"),
    "nested": struct.pack("<I", 100_000) + b"\x91" * 100_000,
    "engine's own": frame(Outputs(1, 1, [])),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_frames_end_their_own_connection_only(served, kind):
    with served.connect() as good, served.connect() as bad:
        receive(good)
        receive(bad)
        good.sendall(frame(Submit(1, request("good", 300))))
        bad.sendall(frame(Submit(1, request("bad", 2000))))
        wait_for(lambda: "bad" in served.core.roster.requests)
        bad.sendall(BROKEN[kind])
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                receive(bad)
        count = 0
        while count < 300:
            count += sum(len(ids) for _, ids, _ in outputs(good))
    wait_for(lambda: not served.core.roster.requests)  # the request of the broken front is aborted


def test_truncated_frames_and_leaving_abort(served):
    front = served.connect()
    receive(front)
    front.sendall(frame(Submit(1, request("gone", 2000))))
    wait_for(lambda: served.core.roster.running)
    front.sendall(frame(Submit(1, request("half")))[:-3])
    front.close()
    wait_for(lambda: not served.core.roster.requests)
    assert served.core.roster.cache.pool.owned == 0


def test_words_of_other_epochs_and_fronts_are_dropped(served):
    with served.connect() as front, served.connect() as other:
        receive(front), receive(other)
        front.sendall(frame(Submit(7, request("old"))) + frame(Submit(1, request("mine", 200))))
        wait_for(lambda: "mine" in served.core.roster.requests)
        assert "old" not in served.core.roster.requests
        other.sendall(frame(messages.Abort(1, "mine")) + frame(Ask(1, 3, "stats")))
        answer = receive(other)
        assert isinstance(answer, Answer) and answer.number == 3
        assert "mine" in served.core.roster.requests, "another front aborted it"
        front.sendall(frame(messages.Abort(1, "mine")))
        wait_for(lambda: not served.core.roster.requests)


def test_refusals_come_back(served):
    with served.connect() as front:
        receive(front)
        front.sendall(frame(Submit(1, Request("bad", (5000,), SamplingParams(), seed=1))))
        refused = receive(front)
        assert isinstance(refused, messages.Refused) and refused.error.error().status == 400


def test_a_front_that_reads_nothing_is_let_go(served, monkeypatch):
    """Its connection ends at the limit; the engine never waits for it, and another front is served meanwhile."""
    monkeypatch.setattr(transport, "MAX_BACKLOG", 10_000)
    with served.connect() as lazy, served.connect() as good:
        receive(good)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for i in range(4):
            lazy.sendall(frame(Submit(1, request(f"lazy{i}", 2000))))
        good.sendall(frame(Submit(1, request("good", 500))))
        count = 0
        while count < 500:
            count += sum(len(ids) for _, ids, _ in outputs(good))
        for number in range(30_000):
            try:
                lazy.sendall(frame(Ask(1, number, "stats")))  # each gives an answer that is not read
            except OSError:
                break
        wait_for(lambda: len(served.port._peers) == 1)
    wait_for(lambda: not served.core.roster.requests)


async def test_links_tell_the_end(tmp_path):
    """EOF and nonsense both end a link, once, with a reason; each message is announced before it is written."""
    sent: list[int] = []
    reasons: list[str] = []
    ended = asyncio.Event()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(frame(Shutdown(1))))
        writer.write(frame(Outputs(1, 1, [])) + struct.pack("<I", 3) + b"abc")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(engine, str(tmp_path / "s"))
    link = await SocketLink.connect(tmp_path / "s", lambda: sent.append(1))
    heard: list[object] = []
    link.start(heard.append, lambda reason: (reasons.append(reason), ended.set()))
    await link.send(Shutdown(1))
    await asyncio.wait_for(ended.wait(), 5)
    assert heard == [Outputs(1, 1, [])] and len(reasons) == 1 and len(sent) == 1
    await link.close()
    server.close()
    await server.wait_closed()
