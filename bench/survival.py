"""What streams go through when their engine dies, at full size: a table of what was lost, changed and leaked.

    python -m bench.survival [--streams 64] [--model NAME] [--first 2] [--steps 200]
                             [--only kill,stop,hang,poison,steps] > table.md

Streams are of every kind and dialect (tests/server/streams.py), over a real server and model; what they say is
compared with an undisturbed run. `steps` raises an exception in the engine at step 2, 3, ...: an engine for each,
without HTTP. The exit code is 1 if anything was lost, changed or leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from octavo.engine.client import EngineClient
from octavo.engine.supervisor import Supervisor
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.settings import resolve
from octavo.start import engine_process, find_model
from octavo.structured_outputs import StructuredOutputsParams
from tests import real
from tests.server.faulty import BELL
from tests.server.live import Live
from tests.server.streams import Body, all_streams, bodies

POISON = 666
STOPPED_SECONDS = 30.0
TOKENS = 60  # of a stream at least


@dataclass
class Row:
    """One line of the table."""

    name: str
    streams: int
    lost: int  # ended with an error, or with no end
    changed: int  # said something else than undisturbed
    leaked: float  # share of the cache's blocks that are owned when nothing runs, and processes beside the engine
    deaths: int
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        cells = (self.name, self.streams, self.lost, self.changed, f"{self.leaked:g}", self.deaths)
        return "| " + " | ".join(map(str, (*cells, f"{self.seconds:.1f}", self.note))) + " |"


def disturbed(
    name: str, live: Live, wanted: Sequence[Body], disturb: Callable[[], str] | None, whole: Sequence[Any] | None = None
) -> Row:
    """Run the streams twice, once undisturbed. disturb: called when half of them have begun; gives a note."""
    if whole is None:
        whole = all_streams(live.url, wanted)
    before, notes = live.log.count("the engine died: "), [""]

    def between() -> None:
        if disturb is not None:
            notes.append(disturb())

    begin = time.monotonic()
    found = all_streams(live.url, wanted, between)
    seconds = time.monotonic() - begin
    live.wait_idle(30)
    leaked = live.metric("kv_cache_usage_perc") + len(psutil.Process(live.process.pid).children()) - 1
    lost = sum(isinstance(each, Exception) for each in found)
    changed = sum(f != w for f, w in zip(found, whole, strict=True)) - lost
    return Row(
        name, len(wanted), lost, changed, leaked, live.log.count("the engine died: ") - before, seconds, notes[-1]
    )  # fmt: skip


def away(live: Live, kill: Callable[[], object]) -> str:
    """Kill, and wait until requests would be served again; how long that took, in words."""
    begin = time.monotonic()
    kill()
    gone = False
    while True:
        ready = httpx.get(f"{live.url}/health").status_code == 200
        gone |= not ready
        if gone and ready:
            return f"/health 200 again after {time.monotonic() - begin:.2f} s"
        time.sleep(0.01)


def stopped(engine: psutil.Process) -> str:
    """Stop the engine; that it would be continued 30 s later is seen to by a thread."""
    engine.send_signal(signal.SIGSTOP)

    def resume() -> None:
        if engine.is_running():
            engine.send_signal(signal.SIGCONT)

    timer = threading.Timer(STOPPED_SECONDS, resume)
    timer.daemon = True
    timer.start()
    return f"stopped for {STOPPED_SECONDS:.0f} s"


def server_rows(only: set[str], streams: int, folder: Path, model: Path) -> list[Row]:
    """Rows of signals: one server for all of them."""
    sizes = ("--max-model-len", "1024", "--kv-cache-memory", "512MiB")
    live = Live(folder / "plain", "--max-num-seqs", "64", *sizes, model=model)
    wanted = bodies(streams, TOKENS)
    begin = time.monotonic()
    whole = all_streams(live.url, wanted)
    rows = [Row("undisturbed", streams, 0, 0, 0, 0, time.monotonic() - begin, "first run, cold")]
    rows.append(disturbed("again", live, wanted, None, whole))
    if "kill" in only:
        rows.append(disturbed("kill -9", live, wanted, lambda: away(live, live.engine().kill), whole))
    if "stop" in only:
        rows.append(
            disturbed("SIGSTOP, SIGCONT", live, wanted, lambda: away(live, lambda: stopped(live.engine())), whole)
        )
    assert live.stop() == 0
    return rows


def hang_row(streams: int, folder: Path) -> Row:
    """The engine hangs in its 40th step."""
    wanted = bodies(streams, TOKENS)
    plain = Live(folder / "whole", "--max-num-seqs", "64")
    whole = all_streams(plain.url, wanted)
    assert plain.stop() == 0
    live = Live(
        folder / "hang", "--max-num-seqs", "64",
        program=("tests.server.faulty", json.dumps({"faults": {"core.before_run": "hang@40"}})),
    )  # fmt: skip
    row = disturbed("hang in step 40", live, wanted, None, whole)
    assert live.stop() == 0
    return row


def poison_row(folder: Path) -> Row:
    """One of 32 requests kills the engine; `lost` are the others that are refused."""
    live = Live(folder / "poison", program=("tests.server.faulty", json.dumps({"poison": POISON, "after": 8})))
    body = {"prompt": "Hello", "max_tokens": 60, "seed": POISON}
    told: list[httpx.Response] = []

    def poison() -> str:
        told.append(httpx.post(f"{live.url}/v1/completions", json=body, timeout=300))
        return f"the 32nd: {told[0].status_code} {told[0].json().get('error', {}).get('code')}"

    row = disturbed("a poisonous request among 32", live, bodies(31, TOKENS), poison)
    assert live.stop() == 0
    return row


# -- an exception at each step -----------------------------------------------------------------------------------------


def requests() -> list[Request]:
    """Nine of them; the first one is long enough for 200 steps of one token."""
    kinds: list[dict[str, Any]] = [
        {"max_tokens": 230, "ignore_eos": True}, {"n": 2}, {"logprobs": 3, "prompt_logprobs": 1},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5}, {"mirostat": 2}, {"dry_multiplier": 0.8},
        {"min_tokens": 30, "xtc_probability": 0.5}, {"temperature": 0.0},
        {"structured_outputs": StructuredOutputsParams(regex="([a-z]{2,5} ){200}")},
    ]  # fmt: skip
    return [
        Request(f"r{i}", tuple(range(100 + 40 * i, 130 + 50 * i)), SamplingParams(**{"max_tokens": 60, **kind}), 77 + i)
        for i, kind in enumerate(kinds)
    ]


async def answers(client: EngineClient, fail_at: int = 0) -> list[Any]:
    """All that the requests are given. fail_at: the step that raises, counted from their first one; 0: none does."""

    async def one(request: Request) -> Any:
        made: dict[int, list[Any]] = {choice: [[], [], None, None] for choice in range(request.params.n)}
        async for items in client.submit(request):
            for item in items:
                ids, logprobs, _, prompt = made[item.choice]
                ids += item.token_ids
                logprobs += item.logprobs or ()
                told = prompt or (item.prompt and item.prompt.prompt_logprobs)
                made[item.choice] = [ids, logprobs, item.finish, told]
        return made

    bell = [Request("bell", (1, 2), SamplingParams(max_tokens=1), BELL + fail_at)] if fail_at > 1 else []
    given = await asyncio.gather(*map(one, [*bell, *requests()]), return_exceptions=True)
    return given[len(bell) :]


async def steps_row(first: int, steps: int) -> Row:
    """An exception at step 1, 2, 3, ...: one after the other behind one supervisor, each in an engine of its own."""
    settings = resolve({"model": str(real.smollm2()), "max_model_len": "2048", "kv_cache_memory": "256MiB"})
    process = engine_process(find_model(settings.engine), settings)
    options = {**process.options, "run_ahead": 1, "bells": True}
    process = replace(
        process, factory="tests.server.faulty:set_up", options=options, crashes=None, log_level="critical"
    )
    supervisor = Supervisor(process)
    client = await supervisor.start()
    try:
        whole = await answers(client)
        row = Row(f"an exception at each of steps {first} to {steps}", 0, 0, 0, 0, 0, 0.0)
        begin = time.monotonic()
        for step in range(first, steps + 1):
            found = await answers(client, step)
            lost = sum(isinstance(each, BaseException) for each in found)
            row.streams += len(found)
            row.lost += lost
            row.changed += sum(f != w for f, w in zip(found, whole, strict=True)) - lost
            row.leaked += (await client.stats()).blocks_owned
            row.deaths += len(supervisor.deaths)
            supervisor.deaths.clear()  # which nobody should have so many of
        row.seconds = time.monotonic() - begin
        return row
    finally:
        await supervisor.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--model", choices=real.MODELS, default="smollm2-135m-instruct", help="of kill and stop")
    parser.add_argument("--first", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="kill,stop,hang,poison,steps")
    args = parser.parse_args()
    only = set(args.only.split(","))
    print("| | streams | lost | changed | leaked | deaths | s | |\n|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if only & {"kill", "stop"}:
            rows += server_rows(only, args.streams, Path(folder), real.model(args.model))
            print(*rows, sep="\n", flush=True)
        for name, make in (
            ("hang", lambda: hang_row(args.streams, Path(folder))),
            ("poison", lambda: poison_row(Path(folder))),
            ("steps", lambda: asyncio.run(steps_row(args.first, args.steps))),
        ):
            if name in only:
                rows.append(make())
                print(rows[-1], flush=True)
    sys.exit(any(row.lost or row.changed or row.leaked for row in rows))


if __name__ == "__main__":
    main()
