"""`octavo complete`: the text goes on, the same from a server and from an engine of its own."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command_line import Serving, octavo

TEXT = "The capital of France is"


def test_a_text_goes_on(home: Path, serving: Serving) -> None:
    args = ["--temp", "0", "--max-tokens", "8"]
    own = octavo(home, "complete", "smollm2", TEXT, *args, "--max-model-len", "256")
    assert own.returncode == 0 and own.stdout.strip() and "in-process" in own.stderr, own.stderr
    served = octavo(home, "complete", "--url", serving.url, "-p", TEXT, *args, "--stats")
    assert served.stdout == own.stdout and serving.url in served.stderr and "8 tok · " in served.stderr
    piped = octavo(home, "complete", "--url", serving.url, "--echo", *args, text=TEXT)
    assert piped.stdout == TEXT + own.stdout
    chat = octavo(home, "run", "--url", serving.url, "-p", TEXT, *args)
    assert chat.stdout != own.stdout  # that went through the chat template


def test_without_max_tokens_it_goes_to_the_end_of_the_context(home: Path, serving: Serving) -> None:
    args = ["--temp", "0", "--stats", "-p", "1 2 3 4 5 6 7 8 9 10 11 12 13"]
    told = octavo(home, "complete", "--url", serving.url, *args).stderr
    made = int(told.rsplit(" tok · ", 1)[0].rsplit("\n", 1)[1])
    assert made > 16  # which OpenAI's own default would be


def test_what_cannot_be_completed(home: Path, serving: Serving) -> None:
    for args in (["smollm2"], ["-p", ""]):
        found = octavo(home, "complete", *args)
        assert found.returncode == 2 and "no prompt" in found.stderr
    for url in ([], ["--url", serving.url]):
        found = octavo(home, "complete", *url, "-p", "def f(", "--suffix", "return 1", "--max-model-len", "256")
        assert found.returncode != 0 and "cannot fill in the middle" in found.stderr
