"""Every route guarded, paths as clients write them, keys, origins, metrics, the log, the address."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from octavo.sampling_params import PARAMETERS
from octavo.server.auth import Keys
from octavo.server.dialect import OPENAI, dialect_of
from octavo.server.routes import ROUTES, canonical
from tests import real
from tests.server.live import Live, error_of, receive_all

PUBLIC = {"/", "/health", "/ready", "/readyz", "/ping", "/live", "/version", "/api/version"}
KEY, FILE_KEY = "sk-first-key", "sk-from-the-file"
SMALL: dict[str, Any] = {"prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with keys, one of them in a file."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(f"# keys\n{FILE_KEY}\n")
    flags = ["--api-key", KEY, "--api-key-file", str(folder / "keys"), "--enable-log-requests"]
    server = Live(folder, *flags, "--allowed-origins", "https://app.example,http://localhost:*")
    yield server
    assert server.stop() == 0


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_public_list_is_this() -> None:
    assert {entry.path for entry in ROUTES if entry.public} == PUBLIC


@pytest.mark.parametrize("entry", ROUTES, ids=lambda entry: entry.path)
def test_every_route_needs_a_key(keyed: Live, entry: Any) -> None:
    path = entry.path.replace("{id:path}", "some/model:x")
    for variant in (path, f"{path}/", f"/v1{path}", path.removeprefix("/v1")) if path != "/" else ("/", "//"):
        for method in entry.methods:
            answer = httpx.request(method, keyed.url + variant, json={})
            if entry.path in PUBLIC:
                assert answer.status_code == 200, variant
            else:
                assert answer.status_code == 401 and "API key" in error_of(answer)["message"], variant
                if dialect_of(entry.path) is OPENAI:
                    assert error_of(answer)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"


def test_what_is_no_route_needs_a_key_as_well(keyed: Live) -> None:
    assert httpx.get(f"{keyed.url}/secret/path").status_code == 401
    assert httpx.get(f"{keyed.url}/secret/path", headers={"x-api-key": KEY}).status_code == 404


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_forms_of_a_key(keyed: Live, header: str) -> None:
    prefix = "Bearer " if header == "authorization" else ""
    for key, status in ((KEY, 200), (FILE_KEY, 200), (KEY + "x", 401), (KEY[:-1], 401), ("x", 401), ("\xff", 401)):
        headers = {header: (prefix + key).encode("latin-1")}
        assert httpx.get(f"{keyed.url}/v1/models", headers=headers).status_code == status, key


def test_keys_are_read_again(keyed: Live, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = next(Path(flag) for flag in keyed.process.args if str(flag).endswith("/keys"))  # type: ignore[union-attr]
    file.write_text("sk-new\n")
    keyed.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 5
    while httpx.get(f"{keyed.url}/v1/models", headers={"x-api-key": "sk-new"}).status_code != 200:
        assert time.monotonic() < end
    assert httpx.get(f"{keyed.url}/v1/models", headers={"x-api-key": FILE_KEY}).status_code == 401
    file.write_text(f"{FILE_KEY}\n")
    keyed.process.send_signal(signal.SIGHUP)


def test_a_key_takes_the_same_time_right_or_wrong() -> None:
    """All digests are compared, whatever was sent: the place of the first wrong byte cannot be told."""
    import hmac
    from unittest import mock

    keys = Keys(["a" * 32, "b" * 32], None)
    for sent in (b"a" * 32, b"b" * 32, b"x" + b"a" * 31, b"a" * 31 + b"x", b"", b"a" * 10_000):
        with mock.patch("octavo.server.auth.hmac.compare_digest", side_effect=hmac.compare_digest) as compared:
            try:
                keys.check({b"x-api-key": sent})
            except Exception as error:
                assert type(error).__name__ == "Unauthorized"
        assert [len(call.args[0]) for call in compared.call_args_list] == [32, 32]


def test_any_header_will_do_without_keys(live: Live) -> None:
    for value in (b"Bearer ", b"Bearer nonsense", b""):
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + value + b"\r\n\r\n"
        assert live.raw(head).startswith(b"HTTP/1.1 200")


def test_an_empty_key_is_none(keyed: Live) -> None:
    for value in (b"Bearer ", b"Bearer", b"", b"Basic " + KEY.encode()):
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + value + b"\r\n\r\n"
        assert keyed.raw(head).startswith(b"HTTP/1.1 401")


# -- paths, methods, headers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/v1/models/", "/v1/models"),
        ("/models", "/v1/models"),
        ("/v1/v1/models", "/v1/models"),
        ("//v1//models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/health", "/health"),
        ("/v1/tokenize", "/tokenize"),
        ("/models/a/b:c", "/v1/models/a/b:c"),
        ("/v1", "/v1"),
        ("/", "/"),
    ],
)
def test_paths_as_clients_write_them(live: Live, written: str, meant: str) -> None:
    assert canonical(written) == meant
    answer = httpx.request("GET", live.url + written)
    assert not answer.is_redirect and answer.status_code in (200, 404, 405)
    assert (answer.status_code == 404) == (meant == "/v1")


def test_what_is_no_route_or_method(live: Live) -> None:
    missing = httpx.get(f"{live.url}/nothing/here")
    assert missing.status_code == 404 and "/v1/chat/completions" in error_of(missing)["message"]
    wrong = httpx.get(f"{live.url}/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST" and "POST" in error_of(wrong)["message"]


def test_public_answers(live: Live) -> None:
    assert httpx.get(live.url).text == "Octavo is running\n"
    for path in ("/health", "/v1/health", "/live", "/ready", "/readyz", "/ping"):
        assert httpx.get(live.url + path).json() == {"status": "ok"}
    assert httpx.get(f"{live.url}/version").json()["server"] == "octavo"
    for path in ("/", "/metrics", "/health"):
        head = httpx.head(live.url + path)
        assert head.status_code == 200 and head.text == ""


def test_request_ids(live: Live) -> None:
    given = httpx.post(f"{live.url}/v1/completions", json=SMALL, headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    for odd in ("a b", "x" * 4000, "\x1b[31mred"):
        answer = httpx.get(f"{live.url}/health", headers={"x-request-id": odd.encode()})
        assert re.fullmatch("[0-9a-f]{24}", answer.headers.get("x-request-id", "0" * 24))
    assert httpx.get(f"{live.url}/nothing").headers["x-request-id"]


def test_origins(keyed: Live) -> None:
    """Pages of the allowed origins may ask and may read errors; others get no mark."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-stainless-os, x-evil"}
    url = f"{keyed.url}/v1/chat/completions"
    for origin in ("https://app.example", "http://localhost:5173"):
        answer = httpx.options(url, headers={"origin": origin, **asked})
        allowed = answer.headers["access-control-allow-headers"].split(", ")
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == origin
        assert {"authorization", "content-type", "x-api-key", "anthropic-version", "x-stainless-os"} <= set(allowed)
        assert "x-evil" not in allowed
        refused = httpx.post(url, json={}, headers={"origin": origin})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == origin
    for origin in ("https://evil.example", "https://app.example.evil", "http://localhost:5173.evil", "null"):
        answer = httpx.options(url, headers={"origin": origin, **asked})
        assert answer.status_code == 204 and "access-control-allow-origin" not in answer.headers


def test_the_schema_lists_every_route_and_parameter(live: Live) -> None:
    made = httpx.get(f"{live.url}/openapi.json").json()
    assert set(made["paths"]) == {entry.label for entry in ROUTES}
    for entry in ROUTES:
        (operation,) = [made["paths"][entry.label][method.lower()] for method in entry.methods[:1]]
        assert ("security" in operation) != entry.public and operation["summary"]
    schemas = made["components"]["schemas"]
    for name in ("ChatBody", "CompletionBody"):
        fields = schemas[name]["properties"]
        assert {each.name for each in PARAMETERS} <= set(fields) and "lora" not in fields and "guided_json" in fields
        assert "a number from 0 to 1000" in fields["temperature"]["description"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(made))
    assert set(references) <= set(schemas)


def test_the_page_of_routes_needs_nothing_else(live: Live) -> None:
    """Every route stands in it; no script, and nothing that is fetched."""
    answer = httpx.get(f"{live.url}/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert all(f"</b> {entry.label}</code>" in answer.text for entry in ROUTES)
    assert not any(word in answer.text for word in ("<script", "src=", "http", "@import", "<link"))
    assert "<code>grammar_close</code>" in answer.text


# -- what is told ------------------------------------------------------------------------------------------------------


def test_metrics_have_the_names_people_know(live: Live) -> None:
    httpx.post(f"{live.url}/v1/completions", json={"prompt": "a b c", "max_tokens": 3, "ignore_eos": True})
    text = httpx.get(f"{live.url}/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
        "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total", "spec_decode_num_drafts_total",
        "generation_tokens_total", "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total",
        "request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_count", "request_prompt_tokens_sum", "request_generation_tokens_sum",
    ):  # fmt: skip
        assert re.search(rf'^octavo:{name}\{{[^}}]*model_name="smol"', text, re.M), name
    before = live.metric("generation_tokens_total")
    httpx.post(f"{live.url}/v1/completions", json={"prompt": "a", "max_tokens": 7, "ignore_eos": True})
    live.wait_idle()
    assert live.metric("generation_tokens_total") == before + 7
    httpx.get(f"{live.url}/some/thing/strange")
    assert "strange" not in httpx.get(f"{live.url}/metrics").text


def test_the_log(keyed: Live) -> None:
    """vLLM's and uvicorn's words are there; what users wrote, and keys, are not; no line is forged."""
    headers = {"x-api-key": KEY, "x-request-id": "id-1"}
    body = {"prompt": "kittens and mittens", "max_tokens": 2, "model": "x\nERROR forged", "user": "\x1b[31m"}
    httpx.post(f"{keyed.url}/v1/completions", json=body, headers=headers)
    httpx.post(f"{keyed.url}/v1/completions", json={**body, "model": None}, headers=headers)
    httpx.get(f"{keyed.url}/%0d%0aERROR%20forged", headers=headers)
    end = time.monotonic() + 15
    while "Avg generation throughput" not in keyed.log:
        assert time.monotonic() < end
        time.sleep(0.1)
    log = keyed.log
    assert "Application startup complete." in log and f"Uvicorn running on {keyed.url}" in log
    assert re.search(
        r"Avg prompt throughput: [\d.]+ tokens/s, Avg generation throughput: [\d.]+ tokens/s, Running: \d+ reqs, "
        r"Waiting: \d+ reqs, CPU KV cache usage: [\d.]+%, Prefix cache hit rate: [\d.]+%", log
    )  # fmt: skip
    assert "request id-1 POST /v1/completions: 200" in log
    assert "kittens" not in log and KEY not in log and "\x1b" not in log
    assert not any(line.startswith("ERROR") for line in keyed.lines)


# -- the address -------------------------------------------------------------------------------------------------------


def test_nothing_else_listens(live: Live) -> None:
    """Of all the server's processes one listens, at the one address that was asked for."""
    front = psutil.Process(live.process.pid)
    sockets = [each for process in (front, *front.children(recursive=True)) for each in process.net_connections("inet")]
    listening = {each.laddr for each in sockets if each.status == psutil.CONN_LISTEN or each.type == socket.SOCK_DGRAM}
    assert listening == {("127.0.0.1", live.port)}


def test_an_address_in_use_is_told(live: Live) -> None:
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(real.smollm2()), "--port", str(live.port)]
    begin = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 5 and time.monotonic() - begin < 15
    assert f"127.0.0.1:{live.port} is in use by python" in ended.stderr and f"pid {live.process.pid}" in ended.stderr
    assert f"--port {live.port + 1}" in ended.stderr and "Traceback" not in ended.stderr


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # left behind by a server that was killed
    server = Live(tmp_path, "--uds", str(path))
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/health").json() == {"status": "ok"}
        assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in server.log
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(path))
            plain.sendall(b"GET /live HTTP/1.0\r\n\r\n")
            assert receive_all(plain).startswith(b"HTTP/1.1 200")
    finally:
        assert server.stop() == 0
    assert not path.exists()
