"""Time from `octavo serve` to the first streamed token, files in the page cache.

python bench/startup.py [--model smollm2:135m] [--runs 5]
"""

from __future__ import annotations

import argparse
import statistics

from server import serve


def measured(model: str, runs: int) -> list[float]:
    """Seconds of each run, after one that warms the page cache and the tokenizer's cache."""
    seconds = []
    for _ in range(runs + 1):
        with serve(model) as server:
            seconds.append(server.first_token())
    return sorted(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    seconds = measured(args.model, args.runs)
    print(
        f"{args.model}: {statistics.median(seconds):.2f} s to the first token ({seconds[0]:.2f} to {seconds[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
