"""Peak memory of a server against its plan: KV cache of 256 MiB filled by 32 requests.

python bench/memory.py [--model smollm2:135m]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from server import serve

from octavo.execution.plan import ENGINE_RUNTIME, FRONT_RUNTIME

KV = "256MiB"
FLAGS = ("--kv-cache-memory", KV, "--max-num-seqs", "32", "--no-enable-prefix-caching")
VOCAB = 49000
PROMPT = 64
RUNTIME = (60 + 70) << 20  # that the issue on speed allows engine and front beside the regions and the tokenizer


def measured(model: str) -> dict[str, float]:
    """MiB: the plan's total, the peak of RssAnon + RssShmem over both processes, their ratio, and that to the limit."""
    plan = json.loads(
        subprocess.check_output([sys.executable, "-m", "octavo.cli.main", "plan", model, *FLAGS, "--json"])
    )
    source = random.Random(1)
    with serve(model, FLAGS) as server:
        server.first_token()
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.is_set():
                peak = max(peak, server.resident())
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        # Short prompts and long answers: all 32 run together when the last block of the pool is taken.
        length = plan["kv_tokens"] // 32

        def request(_: int) -> None:
            ids = [source.randrange(VOCAB) for _ in range(PROMPT)]
            body = {"prompt": ids, "max_tokens": length - PROMPT, "temperature": 0, "ignore_eos": True}
            server.post("/v1/completions", body)

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(request, range(32)))
        done.set()
        watcher.join()
    total = plan["total"]
    limit = total - ENGINE_RUNTIME - FRONT_RUNTIME + RUNTIME
    return {"plan": total / 2**20, "peak": peak / 2**20, "ratio": peak / total, "limit": peak / limit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2:135m")
    figures = measured(parser.parse_args().model)
    print("plan {plan:,.1f} MiB, peak {peak:,.1f} MiB, ratio {ratio:.3f}; of the limit {limit:.3f}".format(**figures))


if __name__ == "__main__":
    main()
