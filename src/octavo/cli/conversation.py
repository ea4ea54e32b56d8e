"""A conversation in the terminal: prompts, commands that begin with a slash, Ctrl-C for the answer, Ctrl-D to leave.

The commands are Ollama's. It knows who answers only as something that gives text.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from typing import Any

from octavo.cli.answering import Answering, Thought, apart
from octavo.cli.terminal import DIM, PLAIN
from octavo.errors import OctavoError
from octavo.sampling_params import SamplingParams

HELP = """\
  /set parameter NAME VALUE   a sampling parameter (temperature, top_p, top_k, seed, max_tokens, stop ...)
  /set system TEXT            the system message; begins the conversation anew
  /set verbose, /set quiet    figures after each answer, or none
  /show                       model, context, parameters
  /clear                      forget the conversation
  /regen                      answer the last question again
  /bye                        leave (also Ctrl-D)
  \"\"\"                         begins and ends a text of several lines
  Ctrl-C                      ends an answer"""
OF_OLLAMA = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
QUOTES = '"""'


class Conversation:
    """What was said so far, and how to go on. messages: a system message, if there is one."""

    def __init__(
        self, answering: Answering, messages: Iterable[dict[str, str]], params: dict[str, Any], verbose: bool
    ) -> None:
        self.answering = answering
        self.messages = list(messages)
        self.params = dict(params)
        self.verbose = verbose

    def talk(self) -> None:
        """Until the user leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # makes input() editable
        context = f" · context {self.answering.context:,}" if self.answering.context else ""
        who = f"{self.answering.model} · {self.answering.where}{context}"
        print(f"{who} · /help for commands, {QUOTES} for several lines")
        while True:
            try:
                said = self._read()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\nUse Ctrl + d or /bye to exit.")
                continue
            if said.strip() in ("/bye", "/exit", "/quit"):
                return
            if said.startswith("/"):
                self._command(said)
            elif said.strip():
                self.messages.append({"role": "user", "content": said})
                self._answer()

    def _read(self) -> str:
        line = input(">>> ")
        if not line.startswith(QUOTES):
            return line
        lines = [line.removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input("... "))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def _answer(self) -> None:
        """Answer the last message; what came before Ctrl-C stays part of the conversation."""
        pieces: list[str] = []
        answer = self.answering.answer(self.messages, self.params)
        try:
            with contextlib.closing(answer):
                for text in apart(answer):
                    if not isinstance(text, Thought):
                        pieces.append(text)
                    sys.stdout.write(self._dim(text) if isinstance(text, Thought) else text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            print(f"\n{self._dim('(stopped)')}", end="")
        except OctavoError as error:
            print(f"error: {error.message}", end="")
            if not pieces:
                self.messages.pop()  # the question was not taken
        print()
        if pieces:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})
            if self.verbose and self.answering.last is not None:
                print(self._dim(self.answering.last.line(self.answering.context).rjust(78)))

    def _command(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if word in ("/help", "/?"):
            print(HELP)
        elif word == "/clear":
            self.messages = [each for each in self.messages if each["role"] == "system"]
            print("Forgotten.")
        elif word == "/show":
            shown = ", ".join(f"{name} {value}" for name, value in self.params.items())
            print(f"{self.answering.model} · {self.answering.where} · context {self.answering.context:,}")
            print(f"parameters: {shown or 'the defaults'}")
        elif word == "/regen":
            while self.messages and self.messages[-1]["role"] == "assistant":
                self.messages.pop()
            if self.messages and self.messages[-1]["role"] == "user":
                self._answer()
            else:
                print("Nothing was asked yet.")
        elif word == "/set":
            self._set(rest.strip())
        else:
            print(f"Unknown command {word}. /help lists them.")

    def _set(self, rest: str) -> None:
        what, _, value = rest.partition(" ")
        if what in ("verbose", "quiet"):
            self.verbose = what == "verbose"
            print("Figures after each answer." if self.verbose else "No figures.")
        elif what == "system" and value.strip():
            self.messages = [{"role": "system", "content": value.strip().strip('"')}]
            print("System message set; the conversation begins anew.")
        elif what == "parameter" and len(value.split(maxsplit=1)) == 2:
            name, text = value.split(maxsplit=1)
            self._set_parameter(OF_OLLAMA.get(name, name), text)
        else:
            print("/set parameter NAME VALUE, /set system TEXT, /set verbose, /set quiet")

    def _set_parameter(self, name: str, text: str) -> None:
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        try:
            SamplingParams(**{name: value})
        except TypeError:
            print(f"There is no parameter {name}.")
        except OctavoError as error:
            print(f"error: {error.message}")
        else:
            self.params[name] = value
            print(f"{name} is {value}.")

    def _dim(self, text: str) -> str:
        return f"{DIM}{text}{PLAIN}" if sys.stdout.isatty() else text
