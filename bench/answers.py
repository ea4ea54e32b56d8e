"""What the front pays to turn ids into events: µs a token by what is asked, and hostile answers of growing length.

    python bench/answers.py [--model smollm2:135m] [--tokens 20000] [--rounds 5]

One process, no engine: ids of a text go one by one into Output.push. `plain` is a chat without functions or reasoning,
which must cost what it did before there were parsers. The second table is ns a character of answers that a model could
be led to write; linear is the same figure at each length. Figures are the best of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.settings import resolve
from octavo.start import find_model
from octavo.text.output import Output
from octavo.text.parsers.detect import names, think_format, tool_format
from octavo.text.parsers.splitter import Parsing, Splitter
from octavo.tokenizer.detokenizer import Detokenizer
from octavo.tokenizer.tokenizer import Tokenizer

PROSE = "The weather in Ulm is fair: 21 degrees, a light wind, and (as they say) no cloud in sight. "
CALL = '<tool_call>\n{"name": "note", "arguments": {"text": "%s"}}\n</tool_call>'
FUNCTIONS = {"note": {"type": "object", "properties": {"text": {"type": "string"}}}}
HOSTILE = {
    "[": "[", "{": "{", "open object": '{"a":', "backslashes": "\\", "quotes": '"', "spaces": " ",
    "half a marker": "<tool_cal", "marker": "<tool_call>", "marker and brace": "<tool_call>{", "brackets": "[f(",
    "key": '<tool_call>{"name": "note", "arguments": {"x": [', "parameter": "<function=note><parameter=text>",
    "arg_key": "<tool_call>note<arg_key>", "import": "[__import__('os'),", "channel": "<|channel|>",
}  # fmt: skip


def per_token(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...], parsing: Parsing | None) -> float:
    """Seconds for all ids."""
    shown = frozenset[str]() if parsing is None else parsing.shown
    output = Output(Detokenizer(tokenizer, shown=shown), 0, stop, parsing=parsing)
    begin = time.perf_counter()
    for id_ in ids:
        output.push((id_,))
    return time.perf_counter() - begin


def hostile(name: str, text: str, every: int) -> float:
    """Seconds for an answer that comes in pieces."""
    think = think_format("harmony" if name == "harmony" else "think")
    splitter = Splitter(Parsing(tool_format(name), think, False, FUNCTIONS))
    begin = time.perf_counter()
    for at in range(0, len(text), every):
        splitter.push(text[at : at + every])
    splitter.finish()
    return time.perf_counter() - begin


def best(rounds: int, measure: Callable[[], float]) -> float:
    return min(measure() for _ in range(rounds))


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=1 << 20)
    given = parser.parse_args()
    files = find_model(resolve({"model": given.model}).engine)
    tokenizer = Tokenizer.from_checkpoint(open_checkpoint(files.path))
    prose = (tokenizer.encode(PROSE) * (given.tokens // 10))[: given.tokens]
    call = tokenizer.encode(CALL % (PROSE * (given.tokens // 20)))[: given.tokens]
    tools, think = tool_format("hermes"), think_format("think")
    asked = {
        "plain": (prose, (), None),
        "one stop string": (prose, ("\n\nUser:",), None),
        "functions, answered in words": (prose, (), Parsing(tools, None, False, FUNCTIONS)),
        "functions, a call": (call, (), Parsing(tools, None, False, FUNCTIONS)),
        "reasoning": (prose, (), Parsing(None, think, True)),
        "both": (prose, (), Parsing(tools, think, False, FUNCTIONS)),
    }
    print(f"| {'answer':30} | µs a token |\n|{'-' * 32}|-----------:|")
    for what, (ids, stop, parsing) in asked.items():
        seconds = best(
            given.rounds, lambda ids=ids, stop=stop, parsing=parsing: per_token(tokenizer, ids, stop, parsing)
        )
        print(f"| {what:30} | {seconds / len(ids) * 1e6:10.2f} |")
    sizes = [given.longest // 16, given.longest // 4, given.longest]
    print(f"\n| {'hostile answer, worst parser':30} | " + " | ".join(f"{size >> 10:5} KiB" for size in sizes) + " |")
    print(f"|{'-' * 32}|" + "|".join(["-" * 10 + ":"] * len(sizes)) + "|")
    for what, unit in HOSTILE.items():
        worst: dict[int, tuple[float, str]] = {}
        for name in names()[0]:
            for size in sizes:
                if size > sizes[0] and name != worst[sizes[0]][1]:
                    continue
                text = (unit * (size // len(unit) + 1))[:size]
                took = hostile(name, text, 4) / size * 1e9
                worst[size] = max(worst.get(size, (0.0, "")), (took, name))
        told = " | ".join(f"{worst[size][0]:9.0f}" for size in sizes if size in worst)
        print(f"| {f'{what} ({worst[sizes[0]][1]})':30} | {told} |")


if __name__ == "__main__":
    main()
