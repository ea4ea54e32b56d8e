"""Spans of requests at a collector on the loopback; none, and nothing imported for them, without an endpoint. And
request ids in the lines of JSON logs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from octavo.errors import ConfigError
from octavo.server.tracing import Tracing, traces_url
from tests.server.live import Live

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector:
    """Takes what is exported, as OTLP over HTTP has it."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], Any]] = []  # the resource's attributes, the span
        self.paths: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip

                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.paths.add(self.path)
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = plain(each.resource.attributes)
                    outer.spans += [(about, span) for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def plain(attributes: Any) -> dict[str, Any]:
    """Attributes of a message as a dictionary."""

    def value(each: Any) -> Any:
        kind = each.WhichOneof("value")
        return [value(v) for v in each.array_value.values] if kind == "array_value" else getattr(each, kind)

    return {each.key: value(each.value) for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_a_span_for_each_request(tmp_path: Path, collector: Collector) -> None:
    server = Live(
        tmp_path, "--otlp-traces-endpoint", collector.url, "--served-model-name", "smol", "--stream-grace", "0"
    )
    chat = {"messages": [{"role": "user", "content": "secret words"}], "max_tokens": 5, "temperature": 0.5, "n": 2}
    usage = httpx.post(
        f"{server.url}/v1/chat/completions", json=chat | {"ignore_eos": True}, timeout=60,
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"},
    ).json()["usage"]  # fmt: skip
    text = {"prompt": "Once", "max_tokens": 3, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=text, timeout=60) as stream:
        assert stream.read()
    endless = {"prompt": "Once", "max_tokens": 900, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=endless, timeout=60) as stream:
        next(stream.iter_bytes())  # and away
    server.wait_idle(20)
    httpx.get(f"{server.url}/v1/models")  # no span: nothing is generated
    assert server.stop() == 0  # which sends what is left
    assert collector.paths == {"/v1/traces"} and len(collector.spans) == 3
    assert all(about["service.name"] == "octavo" and about["service.version"] for about, _ in collector.spans)
    (first,) = [span for _, span in collector.spans if span.trace_id.hex() == TRACE]
    assert first.parent_span_id.hex() == PARENT and first.name == "chat smol"
    made = plain(first.attributes)
    for name, value in {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "octavo", "gen_ai.request.model": "smol",
        "gen_ai.request.id": "mine-1", "gen_ai.request.max_tokens": 5, "gen_ai.request.temperature": 0.5,
        "gen_ai.request.n": 2, "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"], "http.route": "/v1/chat/completions",
        "gen_ai.response.finish_reasons": ["length", "length"],
    }.items():  # fmt: skip
        assert made[name] == value, name
    seconds = (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert seconds == pytest.approx(made["gen_ai.latency.e2e"], abs=1e-6)
    parts = [made[f"gen_ai.latency.{part}"] for part in ("time_in_queue", "time_in_model_inference")]
    assert sum(parts) == pytest.approx(made["gen_ai.latency.e2e"], abs=1e-6) and min(parts) >= 0
    assert "secret" not in str(first)
    others = sorted(
        (plain(span.attributes) for _, span in collector.spans if span is not first),
        key=lambda a: a["gen_ai.request.max_tokens"],
    )
    assert [each["gen_ai.operation.name"] for each in others] == ["text_completion"] * 2
    assert others[0]["gen_ai.usage.output_tokens"] == 3 and "error.type" not in others[0]
    assert others[1]["error.type"] == "abort" and others[1]["gen_ai.usage.output_tokens"] < 900


def test_a_collector_that_is_not_there_costs_no_answer(tmp_path: Path) -> None:
    server = Live(tmp_path, "--otlp-traces-endpoint", "http://127.0.0.1:9")
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "Once", "max_tokens": 3}, timeout=60)
    assert answer.status_code == 200
    assert server.stop() == 0


def test_endpoints() -> None:
    assert traces_url("http://collector:4318") == traces_url("collector:4318/") == "http://collector:4318/v1/traces"
    assert traces_url("https://x/own/path") == "https://x/own/path"
    for wrong in ("grpc://localhost:4317", "http://", "ftp://x"):
        with pytest.raises(ConfigError, match="4318"):
            traces_url(wrong)


def test_what_is_wrong_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        sys.executable,
        "-m",
        "octavo.cli.main",
        "serve",
        "--port",
        "0",
        "--otlp-traces-endpoint",
        "grpc://x:4317",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--otlp-traces-endpoint: expected http://HOST:4318" in done.stderr
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # as where the extra is not installed
    with pytest.raises(ConfigError, match=r"pip install 'octavo\[otel\]'"):
        Tracing("http://127.0.0.1:4318")


def test_without_an_endpoint_nothing_is_imported() -> None:
    code = "import sys, octavo.server.app, octavo.server.run; print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_json_logs_carry_the_requests_id(tmp_path: Path) -> None:
    server = Live(tmp_path, "--log-json", "--enable-log-requests")
    for id_ in ("first-id", "second-id"):
        body = {"prompt": "Once", "max_tokens": 2}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, headers={"x-request-id": id_})
    assert server.stop() == 0
    rows = [json.loads(line) for line in server.lines]  # all of them: what people are told, too
    told = [row["msg"] for row in rows]
    assert any(msg.startswith("Ready: http") for msg in told) and any(msg.startswith("done. Served") for msg in told)
    for id_ in ("first-id", "second-id"):
        about = [row["msg"] for row in rows if row.get("request_id") == id_]
        assert any("POST /v1/completions" in msg and "200" in msg for msg in about), (id_, rows)
        assert len(about) >= 2  # the line of the request, and that of the call
    assert all({"ts", "level", "part", "msg"} <= set(row) for row in rows)
    command = [
        sys.executable,
        "-m",
        "octavo.cli.main",
        "serve",
        "no-such-model",
        "--port",
        "0",
        "--log-json",
        "--offline",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (*_, last) = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 3 and last["level"] == "error" and "no-such-model" in last["msg"]
