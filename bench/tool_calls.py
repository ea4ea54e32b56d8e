"""Calls that are demanded: whether all of them parse and follow their functions' schemas, over HTTP by a real client.

    python -m bench.tool_calls FILE.gguf [--count 500] [--concurrency 16] [--minutes 9] [--state FILE] [--url URL]

Functions, questions, tool_choice (required, or one by name), parallel calls, streams and whole answers, temperatures (0
and 1, with seeds) vary; request number N is the same each time. Arguments are read by json and held against the
function's parameters by `jsonschema`. With --state the answers are kept in a file of lines, and the same command goes
on behind those that are there; the exit code is 1 if a call was wrong, 3 if some are not asked for yet.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema
import openai

from bench.server import serve

DATA = Path(__file__).parent / "data" / "tool_calls.json"
TOKENS = 1500  # of an answer at most
FLAGS = ("--max-model-len", "4096", "--kv-cache-memory", "1GiB", "--served-model-name", "model")


@dataclass(frozen=True)
class Case:
    """A request. named: the function that tool_choice names; None: required."""

    number: int
    tools: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    named: str | None
    stream: bool
    parallel: bool
    temperature: float

    def body(self) -> dict[str, Any]:
        choice: Any = {"type": "function", "function": {"name": self.named}} if self.named else "required"
        return {
            "model": "model", "messages": self.messages, "tools": self.tools, "tool_choice": choice,
            "parallel_tool_calls": self.parallel, "temperature": self.temperature, "seed": self.number,
            "max_tokens": TOKENS,
        }  # fmt: skip


@dataclass
class Told:
    """What an answer was worth. why: empty for a right one."""

    number: int
    kind: str
    calls: int
    tokens: int
    finish: str
    why: str = ""
    text: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a file or a catalogue name")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=9.0, help="no request is begun later")
    parser.add_argument("--state", type=Path, help="answers so far")
    parser.add_argument("--url", help="a server that runs, instead of one of our own")
    given = parser.parse_args()
    told = [Told(**json.loads(line)) for line in given.state.open()] if given.state and given.state.exists() else []
    known = {each.number for each in told}
    left = [case for case in cases(given.count) if case.number not in known]
    begin = time.perf_counter()
    if left:
        flags = (*FLAGS, "--max-num-seqs", str(given.concurrency))
        with contextlib.ExitStack() as stack:
            url = given.url or started(stack, given.model, flags)
            asyncio.run(ask_all(url, left, given, told))
    summary = figures(told, given.count)
    print(json.dumps({"model": given.model, **summary, "seconds": round(time.perf_counter() - begin)}, indent=2))
    return 1 if summary["wrong"] else 3 if len(told) < given.count else 0


def started(stack: contextlib.ExitStack, model: str, flags: tuple[str, ...]) -> str:
    server = stack.enter_context(serve(model, flags))
    server.first_token()
    return f"http://127.0.0.1:{server.port}"


def cases(count: int) -> list[Case]:
    """Requests 0 to count: sets of functions first, so that neighbours share their prompts' beginnings."""
    data = json.loads(DATA.read_text())
    functions = {each["name"]: {"type": "function", "function": each} for each in data["functions"]}
    made = []
    for number in range(count):
        dice = random.Random(number)
        tools = [functions[name] for name in data["sets"][number * len(data["sets"]) // count]]
        names = [each["function"]["name"] for each in tools]
        messages = [dict(each) for each in dice.choice(data["conversations"])]
        named = dice.choice(names) if number % 2 else None
        made.append(Case(number, tools, messages, named, number % 4 < 2, number % 8 < 4, float(number % 16 < 8)))
    return made


async def ask_all(url: str, left: list[Case], given: argparse.Namespace, told: list[Told]) -> None:
    """Some at a time, each noted as soon as it is there."""
    end = time.monotonic() + given.minutes * 60
    waiting = iter(left)
    async with openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", timeout=600, max_retries=0) as client:

        async def worker() -> None:
            for case in waiting:
                if time.monotonic() > end:
                    return
                answer = await ask(client, case)
                told.append(answer)
                if given.state:
                    with given.state.open("a") as file:
                        file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
                if answer.why:
                    print(f"{answer.number}: {answer.why}: {answer.text[:500]}", file=sys.stderr)

        await asyncio.gather(*(worker() for _ in range(given.concurrency)))


async def ask(client: openai.AsyncOpenAI, case: Case) -> Told:
    """One request, as a client makes it."""
    named, stream = "named" if case.named else "required", "streamed" if case.stream else "whole"
    parallel = "parallel" if case.parallel else "one call"
    kind = f"{named}, {stream}, {parallel}, temperature {case.temperature:g}"
    try:
        if case.stream:
            calls, content, finish, tokens = await streamed(client, case)
        else:
            answer = await client.chat.completions.create(**case.body())
            choice = answer.choices[0]
            calls = [(each.function.name, each.function.arguments) for each in choice.message.tool_calls or ()]
            content, finish, tokens = choice.message.content, choice.finish_reason, answer.usage.completion_tokens
    except openai.OpenAIError as error:
        return Told(case.number, kind, 0, 0, "error", f"{type(error).__name__}: {error}"[:500])
    why = fault(case, calls, content, finish)
    return Told(case.number, kind, len(calls), tokens, finish, why, json.dumps(calls) if why else "")


async def streamed(client: openai.AsyncOpenAI, case: Case) -> tuple[list[tuple[str, str]], str | None, str, int]:
    """Calls put together from the deltas, text, finish_reason, tokens."""
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    content, finish, tokens = "", "", 0
    stream = await client.chat.completions.create(**case.body(), stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            content += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                names.setdefault(call.index, call.function.name)
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    return [(names[index], arguments[index]) for index in sorted(names)], content or None, finish, tokens


def fault(case: Case, calls: list[tuple[str, str]], content: str | None, finish: str) -> str:
    """What is wrong with an answer; empty: nothing."""
    parameters = {each["function"]["name"]: each["function"]["parameters"] for each in case.tools}
    if not calls:
        return f"no call ({finish})"
    if content:
        return f"text beside the calls: {content[:100]!r}"
    if not case.parallel and len(calls) > 1:
        return f"{len(calls)} calls where one was allowed"
    for name, text in calls:
        if name not in parameters or (case.named and name != case.named):
            return f"a call of {name!r}"
        try:
            arguments = json.loads(text)
        except ValueError:
            return f"arguments that do not parse ({finish})"
        error = jsonschema.Draft202012Validator(parameters[name]).iter_errors(arguments)
        for each in error:
            return f"arguments of {name} beside the schema: {each.message[:200]}"
    return "" if finish == "tool_calls" else f"finish_reason {finish}"


def figures(told: list[Told], count: int) -> dict[str, Any]:
    """Counts by kind of request."""
    right = Counter(each.kind for each in told if not each.why)
    asked = Counter(each.kind for each in told)
    return {
        "asked": f"{len(told)} of {count}",
        "right": sum(right.values()),
        "wrong": [{"number": each.number, "why": each.why} for each in told if each.why],
        "calls": sum(each.calls for each in told),
        "tokens": sum(each.tokens for each in told),
        "finished": dict(Counter(each.finish for each in told)),
        "by kind": {kind: f"{right[kind]} of {asked[kind]}" for kind in sorted(asked)},
    }


if __name__ == "__main__":
    sys.exit(main())
