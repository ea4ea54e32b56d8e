"""`octavo ps` and `octavo stop`: servers are found without root, say what they serve, and end by name."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.servers import Running, Seen, host_of, serve_words
from octavo.cli.stop import chosen
from octavo.cli.web import Address
from octavo.errors import ConfigError, OctavoError
from tests.cli.command_line import Serving, octavo


def seen(home: Path, url: str, *args: str, **more: str) -> dict[str, Any]:
    """What `ps` says of the server at `url`: others of this user may run on the machine."""
    found = octavo(home, "ps", "--json", *args, **more)
    assert found.returncode == 0, found.stderr
    (one,) = [each for each in json.loads(found.stdout) if url in each["addresses"]]
    assert isinstance(one, dict)
    return one


def test_ps_shows_what_runs(home: Path, serving: Serving) -> None:
    one = seen(home, serving.url)
    assert one["pid"] == serving.process.pid and one["state"] == "ready" and one["context"] == 256
    assert one["names"][0] == "smollm2:135m" and one["size"] > 90_000_000
    assert (one["running"], one["waiting"]) == (0, 0)
    head, *rows = octavo(home, "ps").stdout.splitlines()
    assert head.split()[:6] == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]  # Ollama's
    (row,) = [row for row in rows if serving.url in row]
    assert row.startswith("smollm2:135m  ") and "0 running, 0 waiting" in row
    assert "just now" in row or " ago  " in row


def test_stop_ends_the_server_that_is_named_and_no_other(home: Path, serving: Serving, tmp_path: Path) -> None:
    socket = tmp_path / "own.sock"
    made = Serving(home, "--served-model-name", "only-here", "--also-listen", str(socket), "--api-key", "secret")
    assert seen(home, made.url)["state"].startswith("needs a key")
    assert seen(home, made.url, OCTAVO_API_KEY="secret")["names"] == ["only-here"]
    one = seen(home, made.url, "--api-key", "wrong", "--api-key", "secret")
    assert one["addresses"] == [made.url, f"unix:{socket}"] and "secret" not in json.dumps(one)
    wrong = octavo(home, "stop", "no-such-model")
    assert wrong.returncode == 2 and made.url in wrong.stderr and made.process.poll() is None
    found = octavo(home, "stop", "only-here", "--api-key", "secret")
    assert found.returncode == 0 and f"stopped only-here at {made.url}" in found.stdout, found.stderr
    made.process.communicate(timeout=10)
    assert made.process.returncode == 0
    assert serving.process.poll() is None


def test_stop_by_port_at_once(home: Path) -> None:
    made = Serving(home)
    found = octavo(home, "stop", made.url.rsplit(":", 1)[1], "--now")
    made.process.communicate(timeout=10)
    assert found.returncode == 0 and made.process.returncode in (0, 130)
    again = octavo(home, "stop", made.url)
    assert again.returncode != 0 and made.url not in again.stdout


def test_which_server_is_meant() -> None:
    first = Seen(Running(7, 1.0, (Address("127.0.0.1", 8000),), ()), "ready", ("a", "b"))
    second = Seen(Running(8, 2.0, (Address("10.1.2.3", 8001), Address("::1", 8002)), ()), "loading")
    for word in ("a", "b:latest", "8000", ":8000", "localhost:8000", "http://127.0.0.1:8000/v1", "7"):
        assert chosen([first, second], word, False) == [first]
    for word in ("http://10.1.2.3:8001", "[::1]:8002".replace("[::1]", "localhost"), "8"):
        assert chosen([first, second], word, False) == [second]
    assert chosen([first], None, False) == [first] and chosen([first, second], None, True) == [first, second]
    for word in (None, "c", "9"):
        with pytest.raises(ConfigError, match="8000"):
            chosen([first, second], word, False)
    with pytest.raises(OctavoError, match="no server"):
        chosen([], None, False)


def test_words_and_addresses_of_proc() -> None:
    assert host_of("0100007F") == "127.0.0.1" and host_of("00000000") == "0.0.0.0"
    assert host_of("00000000000000000000000001000000") == "::1"
    assert host_of("0000000000000000FFFF00000100007F") == "127.0.0.1"
    python = b"/usr/bin/python3\0/opt/bin/octavo\0serve\0m.gguf\0--port\x009\0"
    assert serve_words(python) == ("m.gguf", "--port", "9")
    assert serve_words(b"python\0-m\0octavo.cli.main\0serve\0") == ()
    for other in (b"octavo\0run\0serve\0", b"vim\0octavo\0", b"", b"grep\0octavo serve\0"):
        assert serve_words(other) is None


def test_ending_a_process_that_is_gone_is_no_error(home: Path) -> None:
    made = Serving(home)
    assert made.end(signal.SIGTERM)[0] == 0
    assert made.url not in octavo(home, "ps").stdout
