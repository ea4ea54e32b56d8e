"""What each sampling parameter costs: microseconds a row and milliseconds a step, native, without a model.

    python -m bench.sampler [--vocab 151936] [--rows 32] [--threads 2] [--isa auto] > table.md

Rows look like those of a language model: a normal bulk and a few hundred high logits with an exponential tail. `flat`
rows have no such heads; there filters that keep most of the mass have most to look at. Every row has 2,000 ids before
the sampled one, 1,000 of them the answer's. Each line is the least of several runs of the node on all rows at once.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo.kernels.reference.sample_filters import Parameters
from octavo.sampling_params import DEFAULT_ORDER
from tests.ops.sampler_node import SamplerNode

RUNS, SECONDS = 30, 0.4  # runs of a line at most, and how long they may take
LLAMA_CPP = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
PENALTIES: dict[str, Any] = {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.2}
FILTERS: dict[str, Any] = {
    "top_n_sigma": 3.0, "top_k": 40, "typical_p": 0.95, "top_p": 0.95, "min_p": 0.02, "xtc_probability": 0.5,
    "temperature": 0.8, "dry_multiplier": 0.8,
}  # fmt: skip
WITHOUT_K = {**FILTERS, "top_k": 0}
LINES: dict[str, dict[str, Any]] = {
    "temperature 0": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "top_k 40": {"top_k": 40},
    "top_p 0.95": {"top_p": 0.95},
    "min_p 0.02": {"min_p": 0.02},
    "repetition, presence, frequency penalty": PENALTIES,
    "the same over the last 64 ids": {**PENALTIES, "repeat_last_n": 64},
    "logit_bias, bad_words": {"logit_bias": {5: 1.0}, "bad_words": [[5, 6]]},
    "allowed_token_ids": {"allowed": ...},
    "logprobs 5": {"logprobs": 5},
    "dry": {"dry_multiplier": 0.8, "chain": ("dry", "pick")},
    "top_n_sigma 1": {"top_n_sigma": 1.0, "chain": ("top_n_sigma", "pick")},
    "typical_p 0.9": {"typical_p": 0.9, "chain": ("typ_p", "pick")},
    "xtc": {"xtc_probability": 1.0, "chain": ("xtc", "pick")},
    "dynatemp_range 0.5": {"dynatemp_range": 0.5, "chain": ("temperature", "pick")},
    "mirostat 1": {"chain": ("mirostat",)},
    "mirostat 2": {"chain": ("mirostat_v2",)},
    "every sampler, default order": {**PENALTIES, **FILTERS, "chain": (*DEFAULT_ORDER, "pick")},
    "every sampler, llama.cpp's order": {**PENALTIES, **FILTERS, "chain": (*LLAMA_CPP, "pick")},
    "every sampler, each in the reverse order": {**PENALTIES, **FILTERS, "chain": (*LLAMA_CPP[::-1], "pick")},
    "every sampler but top_k, default order": {**PENALTIES, **WITHOUT_K, "chain": (*DEFAULT_ORDER, "pick")},
    "every sampler, bias, mask and 5 logprobs": {
        **PENALTIES, **FILTERS, "chain": (*DEFAULT_ORDER, "pick"), "logprobs": 5, "logit_bias": {5: 1.0}, "allowed": ...
    },
}  # fmt: skip


def rows_like_a_model(rng: np.random.Generator, rows: int, vocab: int, *, flat: bool) -> npt.NDArray[np.float32]:
    """[rows, vocab]"""
    made = rng.normal(0, 0.5 if flat else 2.0, (rows, vocab))
    if not flat:
        for row in made:
            row[rng.integers(0, vocab, 300)] += 4 + rng.exponential(4, 300)
    return made.astype(np.float32)


def seconds(node: SamplerNode, rows: int) -> float:
    """Of the node on the rows that lie in it: the least of several runs."""
    best, begin = float("inf"), time.perf_counter()
    for _ in range(RUNS):
        at = time.perf_counter()
        node.machine.run_nodes(node.tape, rows)
        now = time.perf_counter()
        best = min(best, now - at)
        if now - begin > SECONDS:
            break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default="auto")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    node = SamplerNode(args.vocab, rows=args.rows, ids=4096, isa=args.isa, threads=args.threads)
    shapes = [rows_like_a_model(rng, args.rows, args.vocab, flat=flat) for flat in (False, True)]
    ids = rng.integers(0, args.vocab, 2000).tolist()
    ids[1500:1990] = ids[1000:1490]  # repetitions, so that DRY has places to look at
    ids[-10:] = ids[1490:1500]
    print(f"{args.rows} rows of {args.vocab:,} ids, {args.threads} threads, {node.machine.isa}\n")
    print("| parameters | us a row | ms a step | flat rows: us a row | ms a step |\n|---|---|---|---|---|")
    for name, line in LINES.items():
        given = dict(line)
        if "allowed" in given:
            given["allowed"] = rng.random(args.vocab) < 0.5
        rows = [Parameters(**{"ids": ids, "prompt_len": 1000, "seed": k} | given) for k in range(args.rows)]
        cells = []
        for logits in shapes:
            node.sample(logits, rows)
            took = seconds(node, args.rows)
            cells.append(f"{took / args.rows * 1e6:.1f} | {took * 1e3:.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
