"""Octavo and the peers that are installed, in turns on one machine, in one run.

    python bench/compare.py [--model FILE.gguf] [--rounds 5] [--out docs/benchmarks/NAME.md]

Octavo runs through `LLM.generate` (Python, scheduler and sampler included): random ids, greedy, ignore_eos, bf16 KV,
prefix cache off. Prefill is 512 ids in one step; a decode rate is (time of 65 tokens - time of 1 token) / 64 steps
times the batch, with 128 ids in. Prints CPU, ceilings, medians and spreads, and the ratio to each peer.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from pathlib import Path

from peers import ANSWER, BATCHES, COLUMNS, PROMPT, Llama

from octavo import LLM, SamplingParams
from octavo.config import EngineConfig
from octavo.execution.ceilings import Ceilings, measure
from octavo.machine import read_machine
from octavo.start import find_model

Rates = dict[str, float]


class Octavo:
    """Our own engine in this process; loaded once, so that only steps are timed."""

    name = "octavo"

    def __init__(self, model: str, threads: int) -> None:
        self.llm = LLM(
            model, threads=threads, max_model_len=2048, max_num_seqs=32, enable_prefix_caching=False,
            max_num_batched_tokens=512, kv_cache_dtype="bf16",
        )  # fmt: skip
        self._random = random.Random(1)
        self._vocab = self.llm.llm.info.vocab_size
        self.run(Path(model))  # warm: pages touched, cost model fitted

    def run(self, _: Path) -> Rates:
        rates = {"prefill 512": 512 / self._time(1, 512, 1)}
        for batch in BATCHES:
            seconds = self._time(batch, PROMPT, ANSWER + 1) - self._time(batch, PROMPT, 1)
            rates[f"decode {batch}"] = batch * ANSWER / seconds
        return rates

    def _time(self, batch: int, prompt: int, answer: int) -> float:
        prompts = [[self._random.randrange(self._vocab) for _ in range(prompt)] for _ in range(batch)]
        params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        assert all(len(output.outputs[0].token_ids) == answer for output in outputs)
        return seconds


def installed_peers(threads: int) -> list[Llama]:
    found = []
    for name, variable in (("llama.cpp", "LLAMA_BENCH_DIR"), ("ik_llama.cpp", "IK_BENCH_DIR")):
        folder = os.environ.get(variable)
        if folder and (Path(folder) / "llama-bench").exists():
            found.append(Llama(name, Path(folder), threads))
    return found


def table(results: dict[str, list[Rates]]) -> str:
    """Markdown: median (least to most) of each engine and column, then our ratio to each peer."""
    lines = ["| tokens/s | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    medians: dict[str, Rates] = {}
    for name, rounds in results.items():
        cells = []
        medians[name] = {}
        for column in COLUMNS:
            values = sorted(each[column] for each in rounds)
            medians[name][column] = statistics.median(values)
            cells.append(f"{medians[name][column]:,.0f} ({values[0]:,.0f} to {values[-1]:,.0f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in list(results)[1:]:
        ratios = [f"{medians['octavo'][c] / medians[name][c]:.2f} x" for c in COLUMNS]
        lines.append(f"| octavo / {name} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def described(ceilings: Ceilings) -> str:
    machine = read_machine()
    return (
        f"CPU {machine.cpu_name} ({machine.cpu_id}), {ceilings.threads} threads, variant {ceilings.isa}; ceilings: "
        f"read {ceilings.read_bytes_per_second / 1e9:.1f} GB/s, int8 {ceilings.int8_ops_per_second / 1e9:,.0f} GOP/s, "
        f"bf16 {ceilings.bf16_flops_per_second / 1e9:,.0f} GFLOP/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m", help="a .gguf file, so that peers can read it too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print("measuring ceilings", file=sys.stderr)
    head = described(measure(threads=args.threads))
    octavo = Octavo(args.model, args.threads)
    model = find_model(EngineConfig(model=args.model)).path
    engines = [octavo, *installed_peers(args.threads)]
    results: dict[str, list[Rates]] = {engine.name: [] for engine in engines}
    for turn in range(args.rounds):
        for engine in engines:
            print(f"round {turn + 1} of {args.rounds}: {engine.name}", file=sys.stderr)
            results[engine.name].append(engine.run(model))
    what = f"{model.name}, {PROMPT} ids in, {ANSWER} out, {args.rounds} rounds, median (least to most)"
    text = f"{head}\n\n{what}\n\n{table(results)}\n"
    print(text)
    if args.out:
        args.out.write_text(f"# {args.out.stem}\n\n{text}")


if __name__ == "__main__":
    main()
