"""One event is one line, whatever a client wrote into it."""

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import logs

LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[[\w.]+\] .*")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    names = ("octavo", "uvicorn", "py.warnings")
    before = [(logging.getLogger(n), logging.getLogger(n).handlers[:], logging.getLogger(n).level) for n in names]
    yield
    logging.captureWarnings(False)
    for logger, handlers, level in before:
        logger.handlers[:], logger.propagate = handlers, True
        logger.setLevel(level)


def written(level: str = "info", json_lines: bool = False) -> io.StringIO:
    stream = io.StringIO()
    logs.set_up(level, json_lines=json_lines, stream=stream)
    return stream


def test_the_line() -> None:
    stream = written()
    logs.get("engine").info("Running: %d reqs", 3)
    assert re.fullmatch(r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[engine\] Running: 3 reqs\n", stream.getvalue())


@given(st.text())
def test_no_text_forges_a_line(text: str) -> None:
    stream = written()
    logs.get("server").warning("request %s", text)
    assert stream.getvalue().count("\n") == 1
    line = stream.getvalue().removesuffix("\n")
    assert line.isprintable() and LINE.fullmatch(line)
    assert len(line.splitlines()) == 1


def test_escapes() -> None:
    assert logs.escape("a\r\nERROR b\x1b[31m\u2028\u202e\x00\U000e0001") == (
        "a\\r\\nERROR b\\x1b[31m\\u2028\\u202e\\x00\\U000e0001"
    )
    assert logs.escape("Grüße 你好 🙂") == "Grüße 你好 🙂"


def test_long_messages_are_cut() -> None:
    stream = written()
    logs.get("server").info("id %s", "x" * (1 << 20))
    assert len(stream.getvalue()) < logs.MESSAGE_LIMIT + 100
    assert "more characters" in stream.getvalue()


def test_levels() -> None:
    stream = written("warning")
    logs.get("engine").info("hidden")
    logs.get("engine").warning("shown")
    assert "hidden" not in stream.getvalue() and "shown" in stream.getvalue()


def test_json_lines() -> None:
    stream = written(json_lines=True)
    logs.get("server").error("bad\nthing", extra={"request_id": "r\n1"})
    row = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert (row["level"], row["part"], row["msg"], row["request_id"]) == ("error", "server", "bad\\nthing", "r\\n1")
    assert isinstance(row["ts"], float)


@pytest.mark.parametrize(("level", "lines"), [("info", 1), ("debug", 4)])
def test_a_trace_is_shown_at_debug_alone(level: str, lines: int) -> None:
    stream = written(level)
    try:
        raise ValueError("evil\nINFO 01-01 00:00:00 [engine] forged")
    except ValueError:
        logs.get("engine").exception("step failed")
    told = stream.getvalue().splitlines()
    assert told[0].startswith("ERROR") and "forged" in told[-1]
    assert len(told) >= lines and (level == "debug" or len(told) == 1)
    assert all(line.startswith("    ") for line in told[1:])


def test_warnings_and_uvicorn_use_the_same_lines() -> None:
    stream = written()
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\nthing", stacklevel=1)
    told = stream.getvalue().splitlines()
    assert told[0].endswith("[uvicorn.error] Application startup complete.")
    assert len(told) == 2 and LINE.fullmatch(told[1])
