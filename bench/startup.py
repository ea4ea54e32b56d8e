"""Time from `octavo serve` to the first streamed token, files in the page cache: the first start, which builds the
tokenizer and packs the weights, and later ones.

python bench/startup.py [--model smollm2:135m] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from server import serve

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.start import find_model

KEPT_SECONDS = 60.0  # for the packed file of a large model to be written


def measured(model: str, runs: int) -> tuple[float, list[float]]:
    """Seconds of the first start with an empty cache folder, and of `runs` later ones."""
    path = str(find_model(EngineConfig(model=model)).path)
    for file in open_checkpoint(path).files:
        file.read_bytes()  # into the page cache
    with tempfile.TemporaryDirectory() as cache:
        flags = ("--cache-dir", cache)
        with serve(path, flags) as server:
            first = server.first_token()
            _wait_for_packed(path, flags)
        seconds = []
        for _ in range(runs):
            with serve(path, flags) as server:
                seconds.append(server.first_token())
    return first, sorted(seconds)


def _wait_for_packed(path: str, flags: tuple[str, ...]) -> None:
    plan = [sys.executable, "-m", "octavo.cli.main", "plan", path, *flags, "--json"]
    packed = json.loads(subprocess.check_output(plan))["packed_file"]
    end = time.monotonic() + KEPT_SECONDS
    while packed is not None and not Path(packed["path"]).exists() and time.monotonic() < end:
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    first, seconds = measured(args.model, args.runs)
    print(
        f"{Path(args.model).name}: {statistics.median(seconds):.2f} s to the first token "
        f"({seconds[0]:.2f} to {seconds[-1]:.2f}); "
        f"{first:.2f} s where the cache was empty"
    )


if __name__ == "__main__":
    main()
