"""`octavo bench serve`: what it says is what happened, from a real server and from bytes cut anywhere."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.bench_client import outcome_of
from octavo.cli.bench_serve import waits
from tests.cli.command_line import Serving, free_port, octavo


def bench(home: Path, url: str, tmp_path: Path, *args: str, code: int = 0) -> tuple[dict[str, Any], str]:
    file = tmp_path / "made" / "result.json"
    save = ["--save-result", "--result-dir", str(file.parent), "--result-filename", file.name]
    found = octavo(home, "bench", "serve", "--base-url", url, *save, *args)
    assert found.returncode == code, found.stderr
    return json.loads(file.read_text()), found.stdout


def test_random_prompts(home: Path, serving: Serving, tmp_path: Path) -> None:
    args = ["--num-prompts", "6", "--input-len", "20", "--output-len", "8", "--max-concurrency", "3"]
    more = ["--metric-percentiles", "50,99", "--percentile-metrics", "ttft,tpot,itl,e2el", "--save-detailed"]
    made, out = bench(
        home, serving.url, tmp_path, *args, *more, "--goodput", "e2el:60000", "--metadata", "host=here"
    )  # fmt: skip
    assert (made["completed"], made["failed"], made["num_prompts"], made["host"]) == (6, 0, 6, "here")
    assert made["input_lens"] == [20] * 6 and made["output_lens"] == [8] * 6
    assert made["total_output_tokens"] == 48 and made["total_input_tokens"] == 120
    assert made["request_goodput"] == made["request_throughput"] == pytest.approx(6 / made["duration"])
    assert made["mean_ttft_ms"] == pytest.approx(1000 * statistics.mean(made["ttfts"]))
    assert made["median_itl_ms"] == made["p50_itl_ms"] <= made["p99_itl_ms"]
    assert 0 < made["p50_ttft_ms"] < made["p50_e2el_ms"] < 1000 * made["duration"]
    for line in (
        r"=+ Serving Benchmark Result =+", r"Successful requests: +6", r"Maximum request concurrency: +3",
        r"Total generated tokens: +48", r"Output token throughput \(tok/s\): +\d", r"-+Time to First Token-+",
        r"P99 TTFT \(ms\): +\d", r"Median TPOT \(ms\): +\d", r"Mean ITL \(ms\): +\d", r"Mean E2EL \(ms\): +\d",
    ):  # fmt: skip
        assert re.search(f"^{line}", out, re.M), line
    again, _ = bench(home, serving.url, tmp_path, *args, *more, "--request-rate", "50", "--backend", "openai-chat")
    assert again["completed"] == 6 and again["request_rate"] == 50 and "generated_texts" in again
    assert all(18 <= each <= 120 for each in again["input_lens"])  # a text of 20 ids, and the chat template


def test_files_of_prompts(home: Path, serving: Serving, tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Question?"}, {"from": "gpt", "value": "one two three four five six"}]
    rows = [{"conversations": talk}, {"conversations": talk[:1]}]
    (tmp_path / "talks.json").write_text(json.dumps(rows))
    (tmp_path / "own.jsonl").write_text(
        '{"prompt": "Count: 1 2 3", "output_tokens": 5}\n{"prompt": "Name a colour:"}\n'
    )
    shared = ["--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / "talks.json"), "--num-prompts", "2"]
    made, _ = bench(home, serving.url, tmp_path, *shared, "--save-detailed", "--ignore-eos")
    assert made["output_lens"][0] == made["output_lens"][1] == 6  # as long as the answer in the file
    own = ["--dataset-name", "custom", "--dataset-path", str(tmp_path / "own.jsonl"), "--num-prompts", "3"]
    made, _ = bench(
        home, serving.url, tmp_path, *own, "--custom-output-len", "3", "--save-detailed", "--ignore-eos"
    )  # fmt: skip
    assert made["output_lens"] == [5, 3, 5]
    for file in ("absent.json", "own.jsonl"):
        args = ["--dataset-name", "sharegpt", "--dataset-path", str(tmp_path / file)]
        found = octavo(home, "bench", "serve", "--base-url", serving.url, *args)
        assert found.returncode == 2 and "--dataset-path" in found.stderr


def test_requests_that_fail_are_told(home: Path, serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "word " * 4000}) + "\n")
    args = ["--dataset-name", "custom", "--dataset-path", str(tmp_path / "own.jsonl"), "--num-prompts", "2"]
    made, out = bench(home, serving.url, tmp_path, *args, "--output-len", "4", code=1)
    assert (made["completed"], made["failed"]) == (1, 1) and "Failed requests:" in out
    for words, said in (
        (["--base-url", f"http://127.0.0.1:{free_port()}"], "no server answers"),
        (["--base-url", serving.url, "--model", "absent"], "absent"),
        (["--base-url", serving.url, "--goodput", "speed:1"], "--goodput"),
        (["--base-url", serving.url, "--percentile-metrics", "x"], "--percentile-metrics"),
        (["--base-url", serving.url, "--dataset-name", "custom"], "--dataset-path"),
    ):
        found = octavo(home, "bench", "serve", "--num-prompts", "1", *words)
        assert found.returncode != 0 and said in found.stderr and "Traceback" not in found.stderr


def chunk(data: object) -> bytes:
    text = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    return f"{len(text):x}\r\n".encode() + text + b"\r\n"


STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    + b"b\r\n: waiting\n\n\r\n"
    + chunk({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    + chunk({"choices": [{"delta": {"content": "é"}}]})
    + chunk({"choices": [{"text": "!"}]})
    + chunk({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    + chunk("[DONE]")
    + b"0\r\n\r\n"
)


def test_a_stream_cut_at_every_byte() -> None:
    for at in range(1, len(STREAM)):
        made = outcome_of(10.0, [STREAM[:at], STREAM[at:]], [11.0, 13.0])
        assert (made.text, made.prompt_tokens, made.output_tokens, made.error) == ("hmé!", 3, 4, "")
        assert set(made.times) <= {1.0, 3.0} and len(made.times) == 3 and made.times == tuple(sorted(made.times))
    alone = outcome_of(0.0, [STREAM[i : i + 1] for i in range(len(STREAM))], [float(i) for i in range(len(STREAM))])
    assert alone.times[0] < alone.times[1] < alone.times[2] == alone.latency
    assert alone.tpot == (alone.latency - alone.ttft) / 3
    assert outcome_of(0.0, [STREAM[:-20]], [1.0]).error == "the stream broke off"
    assert outcome_of(0.0, [], []).error.startswith("nothing")
    refused = b'HTTP/1.1 429 Too Many\r\n\r\n{"error": {"message": "full"}}'
    assert outcome_of(0.0, [refused], [1.0]).error == "429: full"
    failed = STREAM[: STREAM.index(b"b\r\n: w")] + chunk({"error": {"message": "died"}}) + chunk("[DONE]")
    assert "died" in outcome_of(0.0, [failed], [1.0]).error


def test_arrivals() -> None:
    assert waits(math.inf, 1.0, 4, 0) == [0.0] * 4
    for burstiness in (0.5, 1.0, 100.0):
        made = waits(20.0, burstiness, 2001, 1)
        assert sum(made) == pytest.approx(2000 / 20.0) and made == waits(20.0, burstiness, 2001, 1)
        spread = statistics.pstdev(made[1:]) / statistics.mean(made[1:])
        assert spread == pytest.approx(burstiness**-0.5, rel=0.2)  # of a gamma distribution of that shape
    assert waits(5.0, 1.0, 1, 0) == [0.0]
