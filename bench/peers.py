"""One function a peer: how it is run, and what its output says in tokens a second.

A peer is used where its program is found: LLAMA_BENCH_DIR names the folder with llama-bench and llama-batched-bench of
llama.cpp (and IK_BENCH_DIR those of ik_llama.cpp). Each is run at its best settings (`-fa 0` and `-fa 1`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("prefill 512", "decode 1", "decode 8", "decode 32")
BATCHES = (1, 8, 32)
PROMPT, ANSWER = 128, 64


@dataclass
class Llama:
    """llama.cpp or its fork: the folder of its benchmark programs. flash: its better setting, found in the first run by
    prefill and the smaller batches (without flash attention the batch of 32 takes minutes)."""

    name: str
    folder: Path
    threads: int
    flash: int | None = None

    def run(self, model: Path) -> dict[str, float]:
        """Column -> tokens a second, with flash attention off or on, whichever is better in most columns."""
        if self.flash is None:
            off, on = (self._prefill(model, f) | self._decode(model, f, BATCHES[:2]) for f in (0, 1))
            self.flash = int(sum(on[column] >= off[column] for column in on) * 2 >= len(on))
        return self._prefill(model, self.flash) | self._decode(model, self.flash, BATCHES)

    def _prefill(self, model: Path, flash: int) -> dict[str, float]:
        command = [
            self.folder / "llama-bench", "-m", model, "-t", self.threads, "-p", 512, "-n", 0, "-fa", flash,
            "-r", 1, "-o", "json",
        ]  # fmt: skip
        rows = json.loads(_output(command))
        return {"prefill 512": float(rows[0]["avg_ts"])}

    def _decode(self, model: Path, flash: int, batches: Sequence[int]) -> dict[str, float]:
        """With its default cache of f16, faster there than bf16."""
        command = [
            self.folder / "llama-batched-bench", "-m", model, "-t", self.threads, "-c", 8192, "-b", 2048, "-ub", 512,
            "-npp", PROMPT, "-ntg", ANSWER, "-npl", ",".join(map(str, batches)), "-fa", "on" if flash else "off",
            "--output-format", "jsonl",
        ]  # fmt: skip
        rows = [json.loads(line) for line in _output(command).splitlines() if line.startswith("{")]
        return {f"decode {row['pl']}": float(row["speed_tg"]) for row in rows}


def _output(command: list[object]) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
