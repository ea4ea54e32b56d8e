"""Every command as a process of its own on the real default model: what it prints, where, and how it ends."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests import real, tiny
from tests.cli.command_line import WAIT, Serving, environment, octavo, until

# -- the program -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_version(home: Path, word: str) -> None:
    found = octavo(home, word)
    assert (found.returncode, found.stderr) == (0, "")
    assert re.fullmatch(r"octavo 0\.1\.0 \(native (amx|avx512bf16|avx512|avx2|portable)\)\n", found.stdout)


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
    assert plan["fingerprint"].startswith("octavo-n")
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


# -- bench -------------------------------------------------------------------------------------------------------------


def test_bench(home: Path, tmp_path: Path) -> None:
    found = octavo(home, "bench", "-p", "32", "-n", "4", "--batch", "2", "-r", "1")
    assert found.returncode == 0, found.stderr
    head, rule, *rows, roofline = found.stdout.splitlines()
    assert head.replace("|", " ").split() == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert set(rule) <= set("|-: ") and [row.split("|")[6].strip() for row in rows] == ["pp32", "tg4", "tg4 × 2"]
    assert all(re.search(r" [\d,.]+ ± [\d,.]+ \|$", row) for row in rows)
    assert re.match(r"roofline: pp32 \d+ %, tg4 \d+ %, tg4 × 2 \d+ % of [\d.]+ GB/s", roofline)
    deep = octavo(home, "bench", "-p", "16", "-n", "0", "-d", "32", "-r", "2", "-o", "json")
    (record,) = json.loads(deep.stdout)
    assert (record["test"], record["n_prompt"], record["n_gen"], record["n_depth"]) == ("pp16 @ d32", 16, 0, 32)
    assert len(record["samples_ts"]) == 2 and record["model_n_params"] > 0
    table = list(
        csv.DictReader(octavo(home, "bench", "-p", "0", "-n", "2", "--batch", "1", "-o", "csv").stdout.splitlines())
    )
    assert [row["test"] for row in table] == ["tg2"]
    assert "nothing is left to measure" in octavo(home, "bench", "-p", "0", "-n", "0").stderr
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


def test_sigterm_ends_with_0_and_no_process_has_imported_torch_or_transformers(home: Path, tmp_path: Path) -> None:
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
    assert serving.end() == (0, "")  # SIGTERM; standard output is for results
    assert "\ndone. Served 1 requests, 2 tokens.\n" in serving.log
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
    assert "\nthreads: 3  # from --threads\n" in first and "\nmax-model-len: 4000  # from --max-model-len\n" in first
    assert "\nport: 8111  # from OCTAVO_ARG_PORT\n" in first
    again = octavo(home, "serve", "--print-config", "--config", str(tmp_path / "octavo.yaml"), OCTAVO_ARG_PORT="8111")
    values = [re.sub(r"  # from .*", "", text) for text in (first, again.stdout)]
    assert values[0] == values[1] and f"threads: 3  # from {tmp_path / 'octavo.yaml'}: threads\n" in again.stdout
