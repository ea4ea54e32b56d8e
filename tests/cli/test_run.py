"""`octavo run`: one answer, a server that is there, a conversation on a terminal, Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

from tests.cli.command_line import OCTAVO, WAIT, Serving, Terminal, environment, free_port, octavo


def test_run_in_process(home: Path) -> None:
    args = ["--temp", "0", "--max-tokens", "12", "--max-model-len", "512"]
    given = octavo(home, "run", "smollm2", "What is two plus two?", *args, "--stats")
    assert given.returncode == 0, given.stderr
    assert given.stdout.strip() and "in-process" in given.stderr and "tok/s" in given.stderr
    assert octavo(home, "chat", *args, text="What is two plus two?\n").stdout == given.stdout
    told = octavo(home, "run", "-s", "word " * 200, "-p", "What is two plus two?", *args, "--stats")
    used = [int(re.search(r"(\d+)/512 context", each.stderr)[1]) for each in (given, told)]  # type: ignore[index]
    assert used[1] > used[0] + 150


def test_run_asks_a_server_that_is_there(home: Path, serving: Serving) -> None:
    port = serving.url.rsplit(":", 1)[1]
    args = ["-p", "Name a colour.", "--temp", "0", "--max-tokens", "8"]
    found = octavo(home, "run", *args, OCTAVO_ARG_PORT=port)
    assert found.returncode == 0 and f"server http://127.0.0.1:{port}" in found.stderr
    forced = octavo(home, "run", "--url", f"{serving.url}/v1", *args)
    assert forced.stdout == found.stdout and found.stdout.strip()
    own = octavo(home, "run", *args, "--threads", "1", "--max-model-len", "512", OCTAVO_ARG_PORT=port)
    assert "in-process" in own.stderr and own.stdout == found.stdout  # the same tokens either way
    absent = octavo(home, "run", "--url", f"http://127.0.0.1:{free_port()}", *args)
    assert absent.returncode == 1 and "no server answers" in absent.stderr


def test_an_interrupted_answer_ends_with_130(home: Path) -> None:
    args = ["run", "-p", "Count.", "--max-tokens", "900", "--max-model-len", "1024"]
    process = subprocess.Popen(
        [*OCTAVO, *args], env=environment(home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130 and "Traceback" not in said


def test_a_conversation(home: Path) -> None:
    with Terminal(home, "run", "--temp", "0", "--max-tokens", "400", "--max-model-len", "1024") as terminal:
        terminal.wait(r"smollm2:135m · in-process · context 1,024 · /help.*>>> ")
        terminal.type("/nonsense\n")
        terminal.wait(r"Unknown command /nonsense.*>>> ")
        terminal.type("/set parameter temprature 1\n")
        terminal.wait(r"no parameter temprature.*>>> ")
        terminal.type("/set parameter num_predict 5\n/set verbose\n")
        terminal.wait(r"max_tokens is 5\..*Figures.*>>> ")
        terminal.type('"""Say\nhello"""\n')
        terminal.wait(r"5 tok · .*1,024 context.*>>> ")
        terminal.type("/clear\n/set parameter num_predict 400\n/set parameter ignore_eos true\nCount.\n")
        terminal.wait(r"Count\.\s+\w+")
        terminal.interrupt()
        terminal.wait(r"\(stopped\).*>>> ")
        terminal.interrupt()
        terminal.wait(r"Use Ctrl \+ d or /bye to exit\..*>>> ")
        terminal.type("\x04")
        assert terminal.process.wait(WAIT) == 0
