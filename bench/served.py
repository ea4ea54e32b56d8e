"""What serving costs: tokens a second over HTTP against the same requests through `LLM.generate`, in turns.

    python bench/served.py [--model smollm2:135m] [--streams 32] [--answer 64 128] [--rounds 5]

Conversations of 128 ids, greedy, ignore_eos, prefix cache off; each round draws new ones, runs them offline and over
`/v1/chat/completions` as streams. C is the CPU time of the load generator, which a client elsewhere would not take from
these cores: served / (offline x (1 - C / (threads x W))), W the seconds of the round; the plain ratio stands beside it.
The CPU times of front and engine are those of their processes while the round ran.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from server import Server, serve

from octavo import LLM, SamplingParams
from octavo.execution.ceilings import Ceilings, measure
from octavo.machine import read_machine
from octavo.request import ChatRequest

PROMPT = 128
GREEDY = {"temperature": 0, "ignore_eos": True}
LOAD = Path(__file__).with_name("load.py")
Figures = dict[str, float]


class Conversations:
    """Random ones whose prompts have exactly PROMPT ids."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm.llm
        self._random = random.Random(1)
        tokenizer = llm.get_tokenizer()
        words = [tokenizer.decode([id_]) for id_ in range(1000, 5000)]
        self._words = [word for word in words if word.startswith(" ") and word[1:].isalpha() and word.isascii()]

    def draw(self) -> tuple[list[dict[str, str]], list[int]]:
        """Messages, and the ids that the server makes of them."""
        words = self._random.choices(self._words, k=PROMPT)
        while True:
            messages = [{"role": "user", "content": "".join(words).strip()}]
            text = self._llm.renderer.render(ChatRequest(messages, SamplingParams()))
            ids = self._llm.tokenizer.encode(text, add_special_tokens=False)
            if len(ids) <= PROMPT:
                break
            words.pop()
        if len(ids) < PROMPT:  # a word of several ids was taken away
            return self.draw()
        return messages, ids


class Load:
    """bench/load.py on a server."""

    def __init__(self, server: Server) -> None:
        command = [sys.executable, str(LOAD), str(server.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, bodies: list[dict[str, Any]]) -> Figures:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(bodies) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def one_round(llm: LLM, server: Server, load: Load, drawn: list[tuple[Any, list[int]]], answer: int) -> Figures:
    """Offline, then served; times in seconds, rates in tokens a second, CPU in µs a token."""
    tokens = len(drawn) * answer
    begin = time.perf_counter()
    llm.generate([ids for _, ids in drawn], SamplingParams(max_tokens=answer, **GREEDY), use_tqdm=False)
    offline = tokens / (time.perf_counter() - begin)
    more = {"max_tokens": answer, "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    front, engine = server.pids()[:2]
    before = server.cpu_seconds(front), server.cpu_seconds(engine)
    figures = load.round([{"messages": messages, **more} for messages, _ in drawn])
    after = server.cpu_seconds(front), server.cpu_seconds(engine)
    if figures["tokens"] != tokens:
        raise RuntimeError(f"{figures['tokens']} tokens came, {tokens} were asked for")
    served = tokens / figures["seconds"]
    return {
        "offline": offline, "served": served, "seconds": figures["seconds"], "load": figures["cpu"],
        "front": (after[0] - before[0]) / tokens * 1e6, "engine": after[1] - before[1],
        "reads": figures["reads"] / tokens, "first": figures["first"], "gap": figures["gap"],
    }  # fmt: skip


def ratio(each: Figures, threads: int) -> float:
    """Served against what was left of offline's rate beside the load generator."""
    return each["served"] / (each["offline"] * (1 - each["load"] / (threads * each["seconds"])))


def row(streams: int, answer: int, rounds: list[Figures], threads: int) -> str:
    def middle(name: str) -> float:
        return statistics.median(each[name] for each in rounds)

    corrected = sorted(ratio(each, threads) for each in rounds)
    plain = sorted(each["served"] / each["offline"] for each in rounds)
    load = statistics.median(each["load"] / (threads * each["seconds"]) for each in rounds)
    return (
        f"| {streams} x {answer} | {middle('offline'):,.0f} | {middle('served'):,.0f} | "
        f"{statistics.median(corrected):.1%} ({corrected[0]:.1%} to {corrected[-1]:.1%}) | "
        f"{statistics.median(plain):.1%} | {load:.1%} | {middle('front'):.1f} | {middle('reads'):.2f} | "
        f"{middle('first') * 1e3:.0f} | {middle('gap') * 1e3:.1f} |"
    )


def front_costs(rounds: dict[int, list[Figures]]) -> tuple[float, float]:
    """µs of the front's CPU for a streamed token and for a request, of the shortest and the longest answers."""
    cost = {answer: statistics.median(each["front"] for each in results) * answer for answer, results in rounds.items()}
    short, long = min(cost), max(cost)
    if short == long:
        return cost[short] / short, 0.0
    token = (cost[long] - cost[short]) / (long - short)
    return token, cost[short] - token * short


HEAD = (
    "| streams x tokens | offline tok/s | served tok/s | served / offline, load taken off | as it is | load "
    "| front µs/token | reads/token | first ms | gap ms |\n" + "|---" * 10 + "|"
)


def described(ceilings: Ceilings) -> str:
    """The machine, and what it can reach."""
    machine = read_machine()
    return (
        f"CPU {machine.cpu_name} ({machine.cpu_id}), {ceilings.threads} threads, variant {ceilings.isa}; ceilings: "
        f"read {ceilings.read_bytes_per_second / 1e9:.1f} GB/s, int8 {ceilings.int8_ops_per_second / 1e9:,.0f} GOP/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--answer", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    print(described(measure(threads=args.threads)) + f"; {args.model}, {PROMPT} ids in, {args.rounds} rounds\n")
    sizes = {"threads": args.threads, "max_model_len": 2048, "max_num_seqs": max(32, args.streams)}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
    with LLM(args.model, enable_prefix_caching=False, **sizes) as llm:
        drawing = Conversations(llm)
        with serve(args.model, [*flags, "--no-enable-prefix-caching"]) as server:
            server.first_token()
            load = Load(server)
            rounds: dict[int, list[Figures]] = {answer: [] for answer in args.answer}
            for turn in range(args.rounds + 1):  # the first one warms up
                for answer, results in rounds.items():
                    drawn = [drawing.draw() for _ in range(args.streams)]
                    figures = one_round(llm, server, load, drawn, answer)
                    if turn:
                        results.append(figures)
            load.close()
    print(HEAD)
    for answer, results in rounds.items():
        print(row(args.streams, answer, results, args.threads))
    share = statistics.median(ratio(each, args.threads) for each in rounds[args.answer[0]])
    whole = {answer: statistics.median(each["front"] for each in results) for answer, results in rounds.items()}
    told = ", ".join(f"{cost:.1f} of {answer}" for answer, cost in whole.items())
    token, request = front_costs(rounds)
    print(
        f"\n{args.streams} streams: served {share:.1%} of offline, front at most {max(whole.values()):.1f} µs of CPU a "
        f"token of whole answers ({told} tokens): {request:,.0f} for the request and {token:.1f} for each token"
    )


if __name__ == "__main__":
    main()
