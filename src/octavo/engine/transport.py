"""Frames over a unix socket: four bytes of length, then a message. Limits and back-pressure on both sides.

The front's side is an asyncio connection; the engine's is a listener without a thread or a loop of its own, asked
between steps. Bytes that are no frame, or no message, end the connection that they came over and nothing else. It knows
frames and messages, not what they ask for.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from octavo import logs
from octavo.engine.messages import (
    MAX_FRAME,
    BrokenMessage,
    EngineMessage,
    FrontMessage,
    decode_engine,
    decode_front,
    encode,
)

_HEADER = struct.Struct("<I")
READ_BYTES = 1 << 18
MAX_READS = 16  # of one peer between two steps: 4 MiB, so that nobody holds up the steps of all
MAX_BACKLOG = 64 << 20  # bytes that a front may leave unread before its connection is ended: minutes of tokens
MAX_PEERS = 16
CLOSE_SECONDS = 1.0  # for the last message to be taken
HIGH_WATER = 4 << 20  # bytes that the front buffers before send() waits


def frame(message: FrontMessage | EngineMessage) -> bytes:
    """A message with its length before it."""
    data = encode(message)
    if len(data) > MAX_FRAME:
        raise BrokenMessage(f"a message of {len(data)} bytes exceeds the limit of {MAX_FRAME}")
    return _HEADER.pack(len(data)) + data


class FrameReader:
    """Bytes in, whole frames out; at most one frame and one read are kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes. BrokenMessage if a length exceeds the limit."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > MAX_FRAME:
                raise BrokenMessage(f"a frame of {length} bytes exceeds the limit of {MAX_FRAME}")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            yield bytes(buffer[start + _HEADER.size : end])
            start = end
        del buffer[:start]


class Peer:
    """A front connected to the engine."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reader = FrameReader()
        self.unsent = bytearray()
        self.open = True
        self.events = selectors.EVENT_READ


class SocketPort:
    """The engine's side. Listens on a path with mode 0600, serves processes of its own user only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._greeting: EngineMessage | None = None
        self._peers: list[Peer] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(MAX_PEERS)
        self._listener.setblocking(False)

    def greet(self, message: EngineMessage) -> None:
        """Accept from now on; each peer is told this first."""
        if self._greeting is None:
            self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._greeting = message

    def receive(self, timeout: float) -> list[tuple[Peer, FrontMessage | None]]:
        """Messages that have come; waits up to `timeout` seconds for the first. None: this peer is gone."""
        came: list[tuple[Peer, FrontMessage | None]] = []
        for key, events in self._selector.select(timeout):
            peer = key.data
            if peer is None:
                self._accept()
            else:
                if events & selectors.EVENT_WRITE:
                    self._flush(peer)
                if events & selectors.EVENT_READ:
                    self._read(peer, came)
        for peer in [p for p in self._peers if not p.open]:
            self._forget(peer)
            came.append((peer, None))
        return came

    def send(self, peer: Peer, message: EngineMessage) -> None:
        """Send what the socket takes now, the rest when it takes more. A peer that is gone is no error."""
        if not peer.open:
            return
        peer.unsent += frame(message)
        self._flush(peer)
        if len(peer.unsent) > MAX_BACKLOG:
            logs.get("engine").error("a front has left %d bytes unread; its connection ends", len(peer.unsent))
            peer.open = False

    def send_all(self, message: EngineMessage) -> None:
        """Send to every peer."""
        for peer in self._peers:
            self.send(peer, message)

    def close(self, linger: float = 1.0) -> None:
        """Send what is left, for at most `linger` seconds, then close everything and remove the path."""
        deadline = time.monotonic() + linger
        for peer in self._peers:
            while peer.open and peer.unsent and time.monotonic() < deadline:
                self._flush(peer)
                time.sleep(0.005 if peer.unsent else 0)
            peer.connection.close()
        self._selector.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, user, _ = struct.unpack("3i", credentials)
        if user != os.getuid() or len(self._peers) >= MAX_PEERS:
            logs.get("engine").warning("a connection of user %d is refused", user)
            connection.close()
            return
        connection.setblocking(False)
        peer = Peer(connection)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)
        assert self._greeting is not None, "only greet() makes the listener heard"
        self.send(peer, self._greeting)

    def _read(self, peer: Peer, came: list[tuple[Peer, FrontMessage | None]]) -> None:
        try:
            for _ in range(MAX_READS):
                data = peer.connection.recv(READ_BYTES)
                peer.open = bool(data)
                for each in peer.reader.feed(data):
                    came.append((peer, decode_front(each)))
                if len(data) < READ_BYTES:
                    break
        except BlockingIOError:
            pass  # exactly what had come has been read
        except (BrokenMessage, OSError) as error:
            logs.get("engine").warning("a connection ends: %s", error)
            peer.open = False

    def _flush(self, peer: Peer) -> None:
        try:
            sent = peer.connection.send(peer.unsent)
            del peer.unsent[:sent]
        except BlockingIOError:
            pass  # the socket is full: the selector says when it is not
        except OSError as error:
            logs.get("engine").info("a front is gone: %s", error)
            peer.open = False
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        if events != peer.events:
            peer.events = events
            self._selector.modify(peer.connection, events, peer)

    def _forget(self, peer: Peer) -> None:
        self._peers.remove(peer)
        self._selector.unregister(peer.connection)
        peer.connection.close()


class SocketLink(asyncio.Protocol):
    """The front's side of a connection: messages are delivered as their bytes come, without a task of its own."""

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce
        self._frames = FrameReader()
        self._early: asyncio.Queue[EngineMessage | Exception] = asyncio.Queue()  # what came before start()
        self._received: Callable[[EngineMessage], None] = self._early.put_nowait
        self._ended: Callable[[Exception], None] = self._early.put_nowait
        self._over = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport

    @classmethod
    async def connect(cls, path: Path, announce: Callable[[], None]) -> SocketLink:
        """Connect to an engine that listens. announce: called before each message (flight record). Raises OSError."""
        _, link = await asyncio.get_running_loop().create_unix_connection(lambda: cls(announce), str(path))
        return link

    async def read(self) -> EngineMessage:
        """The next message, before start(). EOFError when the engine is gone, BrokenMessage when it talks nonsense."""
        came = await self._early.get()
        if isinstance(came, Exception):
            raise came
        return came

    def start(self, received: Callable[[EngineMessage], None], ended: Callable[[str], None]) -> None:
        """From now on `received` is called with each message, `ended` once when the connection is over."""
        self._received, self._ended = received, lambda error: ended(str(error))
        while not self._early.empty():
            came = self._early.get_nowait()
            if isinstance(came, Exception):
                self._ended(came)
            else:
                received(came)

    def post(self, message: FrontMessage) -> None:
        """Send without waiting: aborts and questions, which are small."""
        data = frame(message)
        if not self._transport.is_closing():
            self._announce()
            self._transport.write(data)

    async def send(self, message: FrontMessage) -> None:
        """Send, and wait while the engine takes nothing. A connection that is over is no error here; `ended` tells."""
        self.post(message)
        await self._writable.wait()

    async def close(self) -> None:
        self._end(None)
        self._transport.close()
        try:
            await asyncio.wait_for(self._over.wait(), CLOSE_SECONDS)
        except TimeoutError:  # an engine that hangs takes nothing any more
            self._transport.abort()

    # What the event loop says

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio's own stubs say BaseTransport
        self._transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        try:
            for each in self._frames.feed(data):
                self._received(decode_engine(each))
        except BrokenMessage as error:
            self._end(error)
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._over.set()
        self._writable.set()
        self._end(EOFError("the engine closed the connection"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _end(self, error: Exception | None) -> None:
        """Say that it is over, once; None: whoever closed it knows."""
        ended, self._ended = self._ended, lambda error: None
        self._received = lambda message: None
        if error is not None:
            ended(error)
