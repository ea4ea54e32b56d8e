"""Every command as a process of its own on the real default model: what it prints, where, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import real, tiny

OCTAVO = [sys.executable, "-m", "octavo.cli.main"]
SMALL = ["--max-model-len", "256", "--kv-cache-memory", "64MiB"]
WAIT = 90.0  # seconds; machines of tests are slow and shared


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the default model already, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "models").mkdir()
    (folder / "models" / real.smollm2().name).symlink_to(real.smollm2())
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    """Without the developer's settings, and without a server that may run on the default port."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OCTAVO_", "OMP_", "OPENAI_", "HF_", "VLLM_"))}
    own = {"OCTAVO_CACHE": str(home), "OCTAVO_STATE": str(home / "state"), "OCTAVO_ARG_PORT": str(free_port())}
    return {**kept, **own, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "1", **more}


def octavo(home: Path, *args: str, text: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. text: standard input."""
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if text is None else {"input": text}
    given |= {"env": environment(home, **more), "timeout": WAIT}
    return subprocess.run([*OCTAVO, *args], capture_output=True, text=True, check=False, **given)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, seconds: float = WAIT) -> Iterator[None]:
    """Try again every 50 ms; fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.05)
    pytest.fail(f"no {what} within {seconds:.0f} s")


class Serving:
    """`octavo serve` with standard error in a file."""

    def __init__(self, home: Path, *args: str, **more: str) -> None:
        self.file = home / f"serve-{time.monotonic_ns()}.log"
        with self.file.open("w") as log:
            self.process = subprocess.Popen(
                [*OCTAVO, "serve", "--port", "0", *SMALL, *args], env=environment(home, **more),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.url = ""
        for _ in until("server"):
            found = re.search(r"^Ready: (\S+)", self.log, re.M)
            if found:
                self.url = found[1]
                break
            assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return self.file.read_text()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and standard output."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=WAIT)
        return self.process.returncode, out


@pytest.fixture(scope="module")
def serving(home: Path) -> Iterator[Serving]:
    made = Serving(home, "--jinja", OLLAMA_NUM_PARALLEL="4")
    yield made
    if made.process.poll() is None:
        made.end()


# -- the program -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(home: Path, word: str) -> None:
    found = octavo(home, word)
    assert (found.returncode, found.stderr) == (0, "")
    assert re.fullmatch(r"octavo 0\.1\.0 \(native (avx512bf16|avx512|avx2|portable)\)\n", found.stdout)


def test_help_names_every_command_and_imports_none(home: Path) -> None:
    code = "import sys; sys.argv = ['octavo', '--help']; from octavo.cli.main import main\n" + (
        "try: main()\nfinally: print(sorted({'click', 'numpy', 'octavo.config'} & set(sys.modules)))"
    )
    own = environment(home)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, check=True)
    assert found.stdout.endswith("[]\n")
    for name in ("serve", "run", "bench", "plan", "verify", "pull", "list", "env"):
        assert f"\n  {name} " in found.stdout
        assert octavo(home, name, "--help").stdout.startswith(f"Usage: octavo {name}")
    assert octavo(home, "help", "ls").stdout == octavo(home, "list", "--help").stdout


def test_help_of_serve_shows_the_common_options(home: Path) -> None:
    flags = [len(re.findall(r"^  --", octavo(home, "serve", word).stdout, re.M)) for word in ("--help", "--help=all")]
    assert 20 <= flags[0] <= 30 < flags[1]
    about = octavo(home, "serve", "--help=kv").stdout
    assert "--kv-cache-dtype" in about and "--port" not in about


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--max-model-length", "5"], "unknown option --max-model-length. Did you mean --max-model-len?"),
        (["srve"], "unknown command srve. Did you mean octavo serve?"),
        (["serve", "–port", "9"], "typographic dash (–). Type --port."),
        (["serve", "--port", "high"], "--port: expected"),
        (["run", "-p", "a", "smollm2", "b"], "two prompts"),
        (["run", "tell me a story"], "octavo run -p 'tell me a story'"),
        (["run"], "no prompt"),
        (["--port", "1"], "comes before a command"),
        (["bench", "latency", "--num-itres", "1"], "Did you mean --num-iters?"),
        (["list", "--jsn"], "Did you mean --json?"),
    ],
)
def test_usage_errors_end_with_2(home: Path, args: list[str], said: str) -> None:
    found = octavo(home, *args)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: ") and said in found.stderr and found.stderr.endswith("  [exit 2]\n")
    assert "Traceback" not in found.stderr


def test_a_stack_trace_comes_with_v_only(home: Path) -> None:
    for words, traced in (([], False), (["-v"], True)):
        found = octavo(home, "plan", "no-such-model", *words)
        assert found.returncode == 3 and "error: no model named 'no-such-model'" in found.stderr
        assert ("Traceback" in found.stderr) is traced


# -- models ------------------------------------------------------------------------------------------------------------


def test_models_that_are_missing_broken_or_pickled_end_with_3(home: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(real.smollm2().read_bytes()[:3_000_000])
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(256)))
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04")
    for name in ("cut.gguf", "noise.gguf", "weights.bin", "absent.gguf"):
        found = octavo(home, "serve", str(tmp_path / name))
        assert found.returncode == 3, found.stderr
        assert name in found.stderr and "Traceback" not in found.stderr and found.stdout == ""
    found = octavo(home, "pull", "org/absent")
    assert found.returncode == 3 and str(home / "hub") in found.stderr


def test_pull_finds_the_default_and_list_shows_it(home: Path) -> None:
    file = home / "models" / real.smollm2().name
    assert octavo(home, "pull").stdout == f"{file}\n"
    snapshot = home / "hub" / "models--some--model" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(bytes(2_000_000))
    head, *rows = octavo(home, "ls").stdout.splitlines()
    assert head.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    by_name = {row.split()[0]: row.split() for row in rows}
    assert by_name["smollm2:135m"][1:4] == ["b179c9523d0e", "98", "MB"]
    assert by_name["some/model"][1:4] == ["0123456789ab", "2", "MB"]
    found = {each["name"]: each for each in json.loads(octavo(home, "list", "--json").stdout)}
    assert found["smollm2:135m"]["size"] == file.stat().st_size and found["smollm2:135m"]["path"] == str(file)
    shutil.rmtree(home / "hub")


def test_env_is_plain_text_without_secrets(home: Path) -> None:
    found = octavo(home, "env", OCTAVO_API_KEY="topsecret", OCTAVO_ARG_THREADS="1", VLLM_API_KEY="x")
    assert found.returncode == 0 and "topsecret" not in found.stdout
    for word in ("octavo ", "python ", "native ", "cpu ", "memory ", "cgroup ", str(home), "VLLM_API_KEY is not read"):
        assert word in found.stdout
    assert json.loads(octavo(home, "env", "--json").stdout)["octavo"].startswith("0.1.0")


# -- plan and verify ---------------------------------------------------------------------------------------------------


def test_plan(home: Path) -> None:
    found = octavo(home, "plan", "--json", "--max-model-len", "2048")
    plan = json.loads(found.stdout)
    assert found.returncode == 0 and plan["fits"] and plan["context"] == 2048 and plan["model_context"] == 8192
    # 30 layers, K and V, 3 heads of 64, bfloat16: rows of the model's own configuration
    assert plan["kv_bytes_per_token"] == 30 * 2 * 3 * 64 * 2
    assert plan["total"] == sum(plan["regions"].values()) + plan["runtime"] <= plan["allowed"]
    cells = {(each["context"], each["users"]): each["total"] for each in plan["table"]}
    grown = cells[2048, 32] - cells[2048, 1]
    assert grown >= 31 * 2048 * plan["kv_bytes_per_token"]
    page = octavo(home, "plan").stdout
    assert "users 32" in page and "serve it: octavo serve smollm2:135m" in page


def test_what_does_not_fit_ends_with_4(home: Path) -> None:
    impossible = ["--max-model-len", "8192", "--kv-cache-memory", "1MiB"]
    for name in ("plan", "serve"):
        found = octavo(home, name, *impossible)
        assert found.returncode == 4 and "error: does not fit: needs" in found.stderr
        assert re.search(r"^  shorter context  --max-model-len 32$", found.stderr, re.M)


def test_verify(home: Path, tmp_path: Path) -> None:
    found = octavo(home, "verify", str(tiny.gguf_file(tmp_path / "tiny.gguf", quantization="q4_1")))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "no node deviates" in found.stdout and "nats" in found.stdout


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_in_process(home: Path) -> None:
    args = ["--temp", "0", "--max-tokens", "12", "--max-model-len", "512"]
    given = octavo(home, "run", "smollm2", "What is two plus two?", *args, "--stats")
    assert given.returncode == 0, given.stderr
    assert given.stdout.strip() and "in-process" in given.stderr and "tok/s" in given.stderr
    assert octavo(home, "chat", *args, text="What is two plus two?\n").stdout == given.stdout
    told = octavo(home, "run", "-s", "word " * 200, "-p", "What is two plus two?", *args, "--stats")
    used = [int(re.search(r"(\d+)/512 context", each.stderr)[1]) for each in (given, told)]  # type: ignore[index]
    assert used[1] > used[0] + 150


def test_run_asks_a_server_that_is_there(home: Path, serving: Serving) -> None:
    port = serving.url.rsplit(":", 1)[1]
    args = ["-p", "Name a colour.", "--temp", "0", "--max-tokens", "8"]
    found = octavo(home, "run", *args, OCTAVO_ARG_PORT=port)
    assert found.returncode == 0 and f"server http://127.0.0.1:{port}" in found.stderr
    forced = octavo(home, "run", "--url", f"{serving.url}/v1", *args)
    assert forced.stdout == found.stdout and found.stdout.strip()
    own = octavo(home, "run", *args, "--threads", "1", "--max-model-len", "512", OCTAVO_ARG_PORT=port)
    assert "in-process" in own.stderr and own.stdout == found.stdout  # the same tokens either way
    absent = octavo(home, "run", "--url", f"http://127.0.0.1:{free_port()}", *args)
    assert absent.returncode == 1 and "no server answers" in absent.stderr


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, home: Path, *args: str) -> None:
        self.screen, inside = pty.openpty()
        self.process = subprocess.Popen(
            [*OCTAVO, *args], stdin=inside, stdout=inside, stderr=inside, env=environment(home, TERM="dumb"),
            start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self.text = ""

    def wait(self, pattern: str) -> None:
        """Until the pattern appears after all that was waited for before."""
        end = time.monotonic() + WAIT
        while not (found := re.search(pattern, self.text, re.S)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text!r}"
            if select.select([self.screen], [], [], 0.5)[0]:
                with contextlib.suppress(OSError):  # the other end was closed
                    self.text += os.read(self.screen, 65536).decode("utf-8", "replace")
        self.text = self.text[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


def test_a_conversation(home: Path) -> None:
    terminal = Terminal(home, "run", "--temp", "0", "--max-tokens", "400", "--max-model-len", "1024")
    terminal.wait(r"smollm2:135m · in-process · context 1,024 · /help.*>>> ")
    terminal.type("/nonsense\n")
    terminal.wait(r"Unknown command /nonsense.*>>> ")
    terminal.type("/set parameter temprature 1\n")
    terminal.wait(r"no parameter temprature.*>>> ")
    terminal.type("/set parameter num_predict 5\n/set verbose\n")
    terminal.wait(r"max_tokens is 5\..*Figures.*>>> ")
    terminal.type('"""Say\nhello"""\n')
    terminal.wait(r"5 tok · .*1,024 context.*>>> ")
    terminal.type("/clear\n/set parameter num_predict 400\n/set parameter ignore_eos true\nCount.\n")
    terminal.wait(r"Count\.\s+\w+")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(r"\(stopped\).*>>> ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(r"Use Ctrl \+ d or /bye to exit\..*>>> ")
    terminal.type("\x04")
    assert terminal.process.wait(WAIT) == 0
    os.close(terminal.screen)


# -- bench -------------------------------------------------------------------------------------------------------------


def test_bench(home: Path, tmp_path: Path) -> None:
    found = octavo(home, "bench", "-p", "32", "-n", "4", "--batch", "2", "-r", "1")
    assert found.returncode == 0, found.stderr
    head, rule, *rows, roofline = found.stdout.splitlines()
    assert head.replace("|", " ").split() == ["model", "size", "backend", "threads", "test", "t/s"]
    assert set(rule) <= set("|-: ") and [row.split("|")[5].strip() for row in rows] == ["pp32", "tg4", "tg4 × 2"]
    assert all(re.search(r" [\d,.]+ ± [\d,.]+ \|$", row) for row in rows)
    assert re.match(r"roofline: pp32 \d+ %, tg4 \d+ %, tg4 × 2 \d+ % of [\d.]+ GB/s", roofline)
    file = tmp_path / "latency.json"
    lengths = ["--input-len", "8", "--output-len", "4"]
    flags = ["--batch-size", "2", "--num-iters", "2", "--num-iters-warmup", "0", "--output-json", str(file)]
    found = octavo(home, "bench", "latency", *lengths, *flags)
    assert found.stdout.startswith("Avg latency: ") and len(json.loads(file.read_text())["latencies"]) == 2
    found = octavo(home, "bench", "throughput", *lengths, "--num-prompts", "3")
    assert re.match(r"Throughput: [\d.]+ requests/s, [\d.]+ total tokens/s, [\d.]+ output tokens/s\n", found.stdout)
    assert "prompt tokens:  24\n" in found.stdout and "output tokens:  12\n" in found.stdout


# -- serve -------------------------------------------------------------------------------------------------------------


def test_serve_without_a_model_serves_the_default(serving: Serving) -> None:
    with urllib.request.urlopen(f"{serving.url}/v1/models", timeout=WAIT) as answer:
        assert json.load(answer)["data"][0]["id"] == "smollm2:135m"
    lines = serving.log.splitlines()
    assert "octavo 0.1.0 · smollm2:135m" in lines
    for label in ("cpu", "model", "memory", "KV cache", "batch", "threads", "ignored", "notice"):
        assert any(re.match(rf"  {label:10}\S", line) for line in lines), label
    assert "  ignored   --jinja (always on)" in lines
    assert "  notice    OLLAMA_NUM_PARALLEL is not read; use --max-num-seqs" in lines


def test_neither_process_imports_torch_or_transformers(home: Path, tmp_path: Path) -> None:
    """Both processes write what they imported when they end."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        f"note = {str(tmp_path)!r} + f'/{{os.getpid()}}.modules'\n"
        "atexit.register(lambda: open(note, 'w').write(' '.join(sys.modules)))\n"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    serving = Serving(home, PYTHONPATH=path)
    body = json.dumps({"prompt": "Hello", "max_tokens": 2}).encode()
    asked = urllib.request.Request(f"{serving.url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=WAIT) as answer:
        assert answer.status == 200
    assert serving.end()[0] == 0
    notes = [set(note.read_text().split()) for note in tmp_path.glob("*.modules")]
    (front,) = [each for each in notes if "octavo.server.run" in each]
    (engine,) = [each for each in notes if "octavo.engine.startup" in each]
    assert not {"torch", "transformers", "octavo.server", "octavo.tokenizer.tokenizer"} & engine
    assert not {"torch", "transformers", "octavo.engine.startup", "octavo.execution.native"} & front


def test_an_address_in_use_ends_with_5(home: Path, serving: Serving) -> None:
    port = serving.url.rsplit(":", 1)[1]
    found = octavo(home, "serve", "--port", port)
    assert found.returncode == 5 and f"127.0.0.1:{port} is in use by" in found.stderr
    assert f"octavo serve --port {int(port) + 1}" in found.stderr


def test_sigterm_ends_with_0_and_leaves_standard_output_empty(serving: Serving) -> None:
    assert serving.end() == (0, "")
    assert re.search(r"^done\. Served \d+ requests", serving.log, re.M)


def test_an_engine_that_dies_too_often_ends_with_6(home: Path) -> None:
    serving = Serving(home)
    killed = set()
    for _ in until("end"):
        if serving.process.poll() is not None:
            break
        for engine in psutil.Process(serving.process.pid).children():
            killed.add(engine.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()
    assert serving.end() == (6, ""), serving.log
    assert "The engine died" in serving.log and serving.log.endswith("[exit 6]\n") and len(killed) >= 2


def test_print_config_is_read_back(home: Path, tmp_path: Path) -> None:
    given = ["--threads", "3", "--max-model-len", "4k"]
    first = octavo(home, "serve", "--print-config", *given, OCTAVO_ARG_PORT="8111").stdout
    (tmp_path / "octavo.yaml").write_text(first)
    assert "\nthreads: 3\n" in first and "\nmax-model-len: 4000\n" in first
    again = octavo(home, "serve", "--print-config", "--config", str(tmp_path / "octavo.yaml"), OCTAVO_ARG_PORT="8111")
    assert again.stdout == first
