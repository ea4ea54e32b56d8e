"""Answers of a server as commands read them: in pieces, of a length, to the end of the connection, cut short."""

from __future__ import annotations

import asyncio

import pytest

from octavo.cli.web import Address, Answer, Unreachable, ask


def asked(raw: bytes) -> Answer:
    """What `ask` makes of these bytes."""

    async def once() -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            return await ask(Address("127.0.0.1", server.sockets[0].getsockname()[1]), "GET", "/x", seconds=30)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", 200, b"abcde"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nhi", 404, b"hi"),
        (b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 204 No\r\n\r\n", 204, b""),
    ],
)
def test_an_answer_is_read_whole(raw: bytes, status: int, body: bytes) -> None:
    answer = asked(raw)
    assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "ended before the answer did"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "ended before the answer did"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", "ended before the answer did"),
        (b"SSH-2.0-x\r\n", "no HTTP"),
    ],
)
def test_what_is_no_whole_answer_is_none(raw: bytes, why: str) -> None:
    with pytest.raises(Unreachable, match=why):
        asked(raw)
