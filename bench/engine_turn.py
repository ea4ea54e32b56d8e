"""Python's time in a turn of the engine's loop, by segment: SmolLM2 decoding for 1, 8 and 32 streams over a socket.

    python bench/engine_turn.py [--model smollm2:135m] [--turns 100] [--rounds 3]

The engine as served, in this process; a child plays the front. Columns of µs are medians over turns of decode rows
alone, each segment without what it calls in another one. `real` are turns of one step (run-ahead off), `ahead` as
served, `none` the same as `real` with a native call that does nothing: how long Python takes when no kernel has driven
it out of the caches. The three alternate, and each is timed with the clocks of the segments and, for the figures of a
turn and of a step, without them: they take 20 to 40 µs. The bar: 100 µs + 3 µs a sequence for a decode step, of which a
turn that runs ahead has several. Tried for less: weights prefetched with prefetchnta (no difference, neither to Python
nor to the kernels); Python's heap in huge pages (360 instead of 390 µs for 32, within the noise).
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.engine.core import EngineCore
from octavo.engine.flight_record import FlightRecord
from octavo.engine.loop import EngineLoop, tune_interpreter
from octavo.engine.messages import VERSION, Hello, Submit
from octavo.engine.startup import set_up
from octavo.engine.transport import Peer, SocketPort, frame
from octavo.execution.runner import H
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.settings import resolve
from octavo.start import find_model

PROMPT, ANSWER = 128, 1800
SEGMENTS = ("receive", "schedule", "record", "arrays", "results", "stats", "update", "send", "rest")
FRONT = """
import socket, sys, threading
engine = socket.socket(socket.AF_UNIX)
engine.connect(sys.argv[1])
def take():
    while engine.recv(1 << 20):
        pass
threading.Thread(target=take, daemon=True).start()
while size := sys.stdin.buffer.read(4):
    engine.sendall(sys.stdin.buffer.read(int.from_bytes(size, "little")))
"""


class Stopwatch:
    """Times of nested segments, each without those inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]
        self._timed: list[tuple[Any, str]] = []

    def on(self, owner: Any, method: str, segment: str) -> None:
        """Time this method of this object from now on."""
        setattr(owner, method, self.timed(getattr(owner, method), segment))
        self._timed.append((owner, method))

    def off(self) -> None:
        """Time no method any more."""
        for owner, method in self._timed:
            delattr(owner, method)
        self._timed.clear()

    def timed(self, call: Callable[..., Any], segment: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            begin = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took = time.perf_counter() - begin
                self.seconds[segment] += took - self._inside.pop()
                self._inside[-1] += took

        return timed


class Engine:
    """An engine with its loop, and its front in another process."""

    def __init__(self, model: str, threads: int) -> None:
        sizes = {"threads": threads, "max_model_len": 2048, "max_num_seqs": 32, "enable_prefix_caching": False}
        settings = resolve({"model": model, **sizes})
        setup = set_up(find_model(settings.engine).path, model, settings.engine, None)
        flight = FlightRecord(64)
        self.core = EngineCore(setup, flight, 1)
        path = Path(tempfile.mkdtemp()) / "engine"
        self._port = SocketPort(path)
        self.loop: EngineLoop[Peer] = EngineLoop(self.core, self._port, flight)
        self._port.greet(Hello(VERSION, 1, self.core.info))
        self._front = subprocess.Popen([sys.executable, "-c", FRONT, str(path)], stdin=subprocess.PIPE)
        tune_interpreter()
        self.watch = Stopwatch()
        runner: Any = setup.runner
        self._executor = runner._executor
        self._native = self.watch.timed(self._executor.execute, "native")
        self._none = self.watch.timed(self._do_nothing, "native")
        self._runner = runner

    def _measure(self) -> None:
        watch, runner = self.watch, self._runner
        watch.on(self._port, "receive", "receive")
        watch.on(self.core.scheduler, "schedule", "schedule")
        watch.on(self.core, "_record", "record")
        watch.on(runner, "run", "arrays")
        watch.on(runner._decodes, "results", "results")
        watch.on(runner, "_stats", "stats")
        watch.on(self.core, "update", "update")
        watch.on(self._port, "send", "send")
        watch.on(self.loop, "turn", "rest")

    def _do_nothing(self) -> bool:
        header = self._executor.step["header"]
        header[H["loops_done"]], header[H["nonfinite"]] = 1, 0
        return True

    def submit(self, count: int) -> None:
        """So many streams, up to their first decode rows."""
        draw = random.Random(count)
        params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
        assert self._front.stdin is not None
        for number in range(count):
            ids = tuple(draw.randrange(1000, 40000) for _ in range(PROMPT))
            request = frame(Submit(1, Request(f"{count}-{number}-chatcmpl-{draw.getrandbits(128):x}", ids, params, 1)))
            self._front.stdin.write(len(request).to_bytes(4, "little") + request)
        self._front.stdin.flush()
        running = self.core.roster.running
        while len(running) < count or any(sequence.remaining != 1 for sequence in running):
            self.loop.turn(0.01)

    def turns(self, number: int, *, ahead: bool, native: bool) -> list[dict[str, float]]:
        """Seconds by segment of so many turns with clocks; of as many without them the `whole` of a turn but for the
        native call, and its decode `steps`."""
        roster, most = self.core.roster, self.core.setup.scheduler.run_ahead
        roster.config = replace(roster.config, run_ahead=most if ahead else 1)
        self._executor.execute = self._native if native else self._none
        made = []
        for _ in range(number):
            self._measure()
            self.watch.seconds = seconds = defaultdict(float)
            self.loop.turn(0.0)
            self.watch.off()
            self.watch.seconds = bare = defaultdict(float)
            begin = time.perf_counter()
            self.loop.turn(0.0)
            seconds["whole"] = time.perf_counter() - begin - bare["native"]
            seconds["steps"] = self._executor.step["header"][H["loops_done"]]
            made.append(seconds)
        return made

    def finish(self) -> None:
        """End what runs."""
        for request in list(self.core.roster.requests):
            self.core.abort(request)
        while self.core.has_work:
            self.loop.turn(0.0)

    def close(self) -> None:
        assert self._front.stdin is not None
        self._front.stdin.close()
        self._front.wait()
        self._port.close()


def row(count: int, name: str, turns: list[dict[str, float]]) -> str:
    middle = {name: statistics.median(turn[name] for turn in turns) for name in ("native", "steps", *SEGMENTS)}
    step = statistics.median(turn["whole"] / turn["steps"] for turn in turns)
    python = sorted(turn["whole"] for turn in turns)
    native, total, steps = middle["native"], statistics.median(python), middle["steps"]
    cells = " | ".join(f"{middle[segment] * 1e6:.0f}" for segment in SEGMENTS)
    low, high = python[len(python) // 10] * 1e6, python[len(python) * 9 // 10] * 1e6
    return (
        f"| {count} {name} | {steps:.0f} | {native * 1e3:.2f} | {total * 1e6:.0f} ({low:.0f} to {high:.0f}) | "
        f"{total / (total + native):.1%} | {step * 1e6:.0f} | {100 + 3 * count} | {cells} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    kinds = {"real": (False, True), "ahead": (True, True), "none": (False, False)}
    engine = Engine(args.model, args.threads)
    print(
        "| sequences | steps | native ms | Python µs (10 to 90 %) | share | µs a step | bar | "
        + " | ".join(SEGMENTS)
        + " |"
    )
    print("|---" * (7 + len(SEGMENTS)) + "|")
    for count in (1, 8, 32):
        engine.submit(count)
        turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for number in range(args.rounds + 1):  # the first one warms up
            for kind, (ahead, native) in kinds.items():
                made = engine.turns(
                    max(2, args.turns // args.rounds // (8 if ahead else 1)), ahead=ahead, native=native
                )
                turns[kind] += made if number else []
        engine.finish()
        for kind, each in turns.items():
            print(row(count, kind, each), flush=True)
    engine.close()


if __name__ == "__main__":
    main()
