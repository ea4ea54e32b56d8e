"""The two files of `octavo run-batch`: requests in OpenAI's batch format, and a line of answer for each.

A line of the output stands whole or is cut off and asked again; answers that a later try may change (429, 5xx) are
asked again, too. Only places of lines are kept in memory, never their texts.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec

from octavo.errors import ConfigError, InvalidRequest
from octavo.server.limits import check_depth
from octavo.server.openai.batch_run import ENDPOINTS

LISTED = 10  # faults that an error lists
AGAIN = (408, 429)  # and all from 500 on: not the request's fault


@dataclass(frozen=True)
class Place:
    """Where a line stands in its file."""

    offset: int
    length: int

    def read(self, file: BinaryIO) -> bytes:
        file.seek(self.offset)
        return file.read(self.length)


@dataclass(frozen=True)
class Line:
    """A request of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]


def lines_of(file: BinaryIO) -> Iterator[tuple[int, Place, bytes]]:
    """Number, place and text of each line that is not empty."""
    offset = 0
    for number, raw in enumerate(file, 1):
        if raw.strip():
            yield number, Place(offset, len(raw)), raw
        offset += len(raw)


def parse(raw: bytes) -> Line:
    """ValueError says what is wrong with a line."""
    try:
        made = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({str(error)[:100]})") from None
    if not isinstance(made, dict) or not isinstance(made.get("body"), dict):
        raise ValueError("expected an object with custom_id, method, url and body")
    try:
        check_depth(made["body"], "body")
    except InvalidRequest as error:
        raise ValueError(error.message) from None
    id_, url = made.get("custom_id"), made.get("url")
    if not isinstance(id_, str) or not id_:
        raise ValueError("custom_id is missing")
    if made.get("method") != "POST":
        raise ValueError("method must be POST")
    if url not in ENDPOINTS:
        raise ValueError(f"url must be one of {', '.join(ENDPOINTS)}")
    return Line(id_, url, made["body"])


def read_input(path: Path) -> dict[str, Place]:
    """The requests by custom_id, in order. ConfigError lists what is wrong with them, before anything runs."""
    found: dict[str, Place] = {}
    faults: list[str] = []
    try:
        with path.open("rb") as file:
            for number, place, raw in lines_of(file):
                try:
                    line = parse(raw)
                    if line.custom_id in found:
                        raise ValueError(f"custom_id {line.custom_id[:60]!r} is given twice")
                except ValueError as error:
                    faults.append(f"line {number}: {error}")
                    if len(faults) == LISTED:
                        break
                else:
                    found[line.custom_id] = place
    except OSError as error:
        raise ConfigError(f"--input-file {path}: {error.strerror}.", flag="--input-file") from None
    if faults:
        raise ConfigError(
            f"--input-file {path}: nothing was run.\n" + "\n".join(f"  {each}" for each in faults), flag="--input-file"
        )
    if not found:
        raise ConfigError(f"--input-file {path}: it has no requests.", flag="--input-file")
    return found


class Output:
    """The output file. known: custom_id of each line that stays -> its place and status."""

    def __init__(self, path: Path, wanted: dict[str, Place], overwrite: bool) -> None:
        """wanted: those of the input. Raises ConfigError for a file that is no output of it."""
        self.path = path
        self.known: dict[str, tuple[Place, int]] = {}
        self.again = 0  # answers that are asked for anew
        try:
            if overwrite:
                path.unlink(missing_ok=True)
            elif path.exists():
                self._take_up(wanted)
            self._file = path.open("ab")
        except OSError as error:
            raise ConfigError(f"--output-file {path}: {error.strerror}.", flag="--output-file") from None
        self._end = self._file.tell()

    def _take_up(self, wanted: dict[str, Place]) -> None:
        """What an earlier run left."""
        kept: list[tuple[str, Place, int]] = []
        whole = True
        with self.path.open("rb") as file:
            for number, place, raw in lines_of(file):
                if not raw.endswith(b"\n"):
                    whole = False  # that run was killed in the midst of it
                    break
                id_, status = self._row(number, raw)
                if id_ not in wanted:
                    raise ConfigError(
                        f"--output-file {self.path}: line {number} answers {id_[:60]!r}, which the input does not ask. "
                        "Name another file, or give --overwrite.",
                        flag="--output-file",
                    )
                if status in AGAIN or status >= 500:
                    self.again += 1
                else:
                    kept.append((id_, place, status))
            if self.again or not whole:
                self._rewrite(lambda out: [out.write(place.read(file)) for _, place, _ in kept])
        offset = 0
        for id_, place, status in kept:
            self.known[id_] = Place(offset, place.length), status
            offset += place.length

    def _row(self, number: int, raw: bytes) -> tuple[str, int]:
        try:
            made = msgspec.json.decode(raw)
            return str(made["custom_id"]), int(made["response"]["status_code"])
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
            raise ConfigError(
                f"--output-file {self.path}: line {number} is no answer of a batch. Name another file, or give "
                "--overwrite.",
                flag="--output-file",
            ) from None

    def add(self, custom_id: str, status: int, body: bytes) -> None:
        """The answer of one request, at once on disk."""
        token = secrets.token_hex(12)
        try:
            told: object = msgspec.Raw(body) if msgspec.json.decode(body) is not None else None
        except msgspec.DecodeError:
            told = {"error": {"message": body[:1000].decode("utf-8", "replace"), "code": status}}
        row = msgspec.json.encode(
            {
                "id": f"batch_req_{token}",
                "custom_id": custom_id,
                "response": {"status_code": status, "request_id": token, "body": told},
                "error": None,
            }
        )
        self._file.write(row + b"\n")
        self._file.flush()
        self.known[custom_id] = Place(self._end, len(row) + 1), status
        self._end += len(row) + 1

    @property
    def failed(self) -> int:
        """Answers that are errors."""
        return sum(status != 200 for _, status in self.known.values())

    def in_order(self, wanted: dict[str, Place]) -> None:
        """Put the lines into the order of the input."""
        self._file.close()
        with self.path.open("rb") as file:
            self._rewrite(lambda out: [out.write(self.known[id_][0].read(file)) for id_ in wanted])

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, write: Callable[[IO[bytes]], object]) -> None:
        """The file anew, whole or not at all."""
        with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as out:
            try:
                write(out)
                out.flush()
                os.chmod(out.name, self.path.stat().st_mode & 0o777)
                os.replace(out.name, self.path)
            except BaseException:
                Path(out.name).unlink(missing_ok=True)
                raise
