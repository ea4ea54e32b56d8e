"""Octavo and the peers that are installed (peers.py), in turns on one machine, in one run.

    python bench/compare.py [--model FILE.gguf] [--rounds 5] [--columns "prefill 512,decode 1"] [--out NAME.md]

Octavo runs through `LLM.generate` (Python, scheduler and sampler included): random ids, greedy, ignore_eos, bf16 KV,
prefix cache off. A decode rate is (time of 65 tokens - time of 1 token) / 64 steps times the batch. Before the rounds
every peer tries its settings once for each column. Around each of Octavo's turns the ceilings are measured: a shared
machine gives 46 to 81 GB/s within minutes. Prints CPU, ceilings, medians, ratios and shares of the ceilings; --out
takes it, with all figures in a .json beside it. A peer that fails leaves, the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ceiling import decode_bytes, prefill_work
from comparison import OURS, Comparison
from peers import ANSWER, COLUMNS, Column, Peer, installed

from octavo import LLM, SamplingParams
from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.execution.ceilings import READS, Ceilings, measure
from octavo.execution.plan import make_plan
from octavo.machine import read_machine
from octavo.start import find_model


class Octavo:
    """Our own engine in this process; loaded once, so that only steps are timed."""

    name = OURS

    def __init__(self, model: Path, threads: int, isa: str, columns: Sequence[Column]) -> None:
        longest = max(column.prompt for column in columns) + ANSWER + 1
        self.options: dict[str, Any] = {
            "threads": threads, "isa": isa, "max_model_len": -(-longest // 1024) * 1024, "max_num_seqs": 32,
            "enable_prefix_caching": False, "kv_cache_dtype": "bf16",
        }  # fmt: skip
        self.llm = LLM(str(model), **self.options)
        self._random = random.Random(1)
        self._vocab = self.llm.llm.info.vocab_size

    def settings(self, _: Column) -> list[str]:
        return ["default"]

    def keep(self, settings: set[str]) -> None:
        """It stays."""

    def rate(self, column: Column, setting: str) -> float:
        return column.rate(lambda answer: self._seconds(column, answer))

    def _seconds(self, column: Column, answer: int) -> float:
        prompts = [[self._random.randrange(self._vocab) for _ in range(column.prompt)] for _ in range(column.batch)]
        params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        if any(len(output.outputs[0].token_ids) != answer for output in outputs):
            raise RuntimeError(f"{answer} tokens were asked for")
        return seconds


class Run:
    """The turns, and what they gave."""

    def __init__(self, engines: Sequence[Peer], columns: Sequence[Column], found: Comparison) -> None:
        self.engines, self.columns, self.found = list(engines), columns, found
        found.rates = {engine.name: {} for engine in engines}

    def run(self) -> None:
        """Every peer's best settings, then the rounds."""
        for column in self.columns:
            for engine in list(self.engines):
                self._try_settings(engine, column)
        for engine in self.engines:
            engine.keep(set(self.found.settings.get(engine.name, {}).values()))
        for turn in range(self.found.rounds):
            for column in self.columns:
                for engine in list(self.engines):
                    setting = self.found.settings.get(engine.name, {}).get(column.name, "default")
                    ceilings = [self._half_ceilings()] if engine.name == OURS else []
                    rate = self._rate(engine, column, setting, f"round {turn + 1} of {self.found.rounds}")
                    if ceilings:
                        self.found.ceilings.setdefault(column.name, []).append(ceilings[0].best(self._half_ceilings()))
                    if rate is not None:
                        self.found.rates[engine.name].setdefault(column.name, []).append(rate)

    def _half_ceilings(self) -> Ceilings:
        """Half of the reads before our turn and half behind it: together the best of READS."""
        return measure(threads=self.found.threads, isa=self.found.isa, reads=READS // 2)

    def _try_settings(self, engine: Peer, column: Column) -> None:
        """One run of each setting that is not known already; Octavo's warms it up."""
        if column.name in self.found.settings.get(engine.name, {}):
            return
        tried = {}
        for setting in engine.settings(column):
            rate = self._rate(engine, column, setting, "settings")
            if rate is None:
                return
            tried[setting] = rate
        if engine.name != OURS:
            self.found.tried.setdefault(engine.name, {})[column.name] = tried
            self.found.settings.setdefault(engine.name, {})[column.name] = max(tried, key=lambda each: tried[each])

    def _rate(self, engine: Peer, column: Column, setting: str, turn: str) -> float | None:
        """Tokens a second, or None where the peer failed: it takes no further part."""
        try:
            rate = engine.rate(column, setting)
        except (RuntimeError, OSError, ValueError, LookupError) as error:
            if engine.name == OURS:
                raise
            say(f"{engine.name} failed: {error}")
            engine.keep(set())
            self.engines.remove(engine)
            self.found.failed[engine.name] = f"{column.name}, {setting}: {error}"
            return None
        say(f"{turn}: {column.name}: {engine.name} ({setting}): {rate:,.1f}")
        return rate


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def prepared(model: Path, octavo: Octavo, rounds: int, columns: Sequence[Column]) -> Comparison:
    """The machine, and what the model asks of it at least."""
    options = octavo.options
    machine, isa = read_machine(), measure(threads=options["threads"], isa=options["isa"]).isa
    config = dataclasses.replace(EngineConfig(), model=str(model), **options)
    plan = make_plan(open_checkpoint(model), config, free=machine.memory_free, threads=options["threads"])
    lowered = plan.layouts.lowered
    decodes = [column for column in columns if column.decodes]
    # Not of AVX2, which has no dot product of its own. With the matrix unit it stays the vector units' ceiling.
    prefills = [column for column in columns if not column.decodes and isa.startswith(("avx512", "amx"))]
    return Comparison(
        model.name, time.strftime("%Y-%m-%d"), f"{machine.cpu_name} ({machine.cpu_id})", isa,
        options["threads"], rounds, {},
        # The mean of the timed steps: they see prompt + 1 to prompt + ANSWER keys.
        {each.name: decode_bytes(lowered, each.batch, each.prompt + ANSWER // 2) for each in decodes},
        {each.name: each.batch for each in decodes},
        {each.name: prefill_work(lowered, each.prompt) for each in prefills},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m", help="a .gguf file, so that peers can read it too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto", help="avx2: that variant, against llama.cpp without AVX-512")
    parser.add_argument("--columns", default="", help="names, with commas; all")
    parser.add_argument("--peers", default="", help="names or their beginnings, with commas; all")
    parser.add_argument("--settings", type=Path, help="take the peers' best settings from the .json of an earlier run")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    columns = [column for column in COLUMNS if not args.columns or column.name in args.columns.split(",")]
    model = find_model(EngineConfig(model=args.model)).path
    octavo = Octavo(model, args.threads, args.isa, columns)
    found = prepared(model, octavo, args.rounds, columns)
    if args.settings:
        found.settings = Comparison.read(args.settings).settings
    wanted = tuple(args.peers.split(","))
    peers = [peer for peer in installed(model, args.threads, args.isa) if peer.name.startswith(wanted)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was measured is written even so
    run = Run([octavo, *peers], columns, found)
    try:
        run.run()
    finally:
        for peer in peers:
            peer.keep(set())
        print(found.markdown())
        if args.out:
            args.out.write_text(f"# {args.out.stem}\n\n{found.markdown()}")
            found.write(args.out.with_suffix(".json"))


if __name__ == "__main__":
    main()
