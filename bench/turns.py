"""The turns of a peer that stays loaded: a line of JSON in (batch, prompt, answer), a line with the seconds out.

Run by the peer's own interpreter, so only the standard library is imported. It knows nothing of models or rates.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG = 1  # linux/prctl.h
Generate = Callable[[Sequence[Sequence[int]], int], Sequence[int]]


def take_turns(load: Callable[[], tuple[Generate, int]]) -> None:
    """Answer every line of stdin until it closes.

    load: gives generate(prompts of ids, tokens to make) -> tokens made of each, and the size of the vocabulary. What it
    and the peer print goes to stderr. The process dies with the one that started it, also while it is stopped.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate, vocab = load()
    chance = random.Random(1)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        prompts = [[chance.randrange(vocab) for _ in range(work["prompt"])] for _ in range(work["batch"])]
        begin = time.perf_counter()
        made = generate(prompts, work["answer"])
        seconds = time.perf_counter() - begin
        if list(made) != [work["answer"]] * work["batch"]:
            raise RuntimeError(f"{work['batch']} x {work['answer']} tokens were asked for and {list(made)} came")
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)
