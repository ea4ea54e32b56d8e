"""Files and batches with the `openai` client on live servers: results, faults, cancelling, the death of a server."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from octavo.errors import InvalidRequest, NotFound, OctavoError
from octavo.server.openai import files as files_module
from octavo.server.openai.batch_run import read_lines
from octavo.server.openai.files import FileStore
from octavo.server.openai.multipart import parts_of
from octavo.server.tenants import ANYONE
from tests.server.live import Live, error_of

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def line(number: int, **body: Any) -> dict[str, Any]:
    asked = {"prompt": f"Number {number} is", "max_tokens": 8, "temperature": 0, **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": COMPLETIONS, "body": asked}


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    data = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return client.files.create(file=("lines.jsonl", data.encode()), purpose="batch").id


def run(client: openai.OpenAI, lines: list[Any], endpoint: Any = COMPLETIONS) -> Any:
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=endpoint, completion_window="24h", metadata={"a": "b"}
    )


def ended(client: openai.OpenAI, batch: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < end, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client: openai.OpenAI, id_: str | None) -> dict[str, Any]:
    """custom_id -> its response."""
    assert id_ is not None
    told = [json.loads(each) for each in client.files.content(id_).text.splitlines()]
    assert len({each["custom_id"] for each in told}) == len(told)
    return {each["custom_id"]: each["response"] for each in told}


# -- files -------------------------------------------------------------------------------------------------------------


def test_files(client: openai.OpenAI, live: Live) -> None:
    """Bytes come back as they went, whatever they are."""
    data = bytes(range(256)) + b"\r\n--x\r\n\r\n" * 5
    made = client.files.create(file=("dir/naïve name.bin", data), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose, made.object) == (len(data), "naïve name.bin", "user_data", "file")
    assert client.files.content(made.id).content == data and client.files.retrieve(made.id) == made
    other = client.files.create(file=("b.jsonl", b"{}"), purpose="batch")
    assert {file.id for file in client.files.list()} >= {made.id, other.id}
    assert made.id not in {file.id for file in client.files.list(purpose="batch")}
    assert client.files.delete(made.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)
    for path in ("..%2f..%2fsecret", "file-x", f"{other.id}.json"):
        assert httpx.get(f"{live.url}/v1/files/{path}").status_code == 404
    client.files.delete(other.id)


def test_uploads_that_are_refused(live: Live) -> None:
    url = f"{live.url}/v1/files"
    form = {"purpose": "batch"}
    for answer, param in (
        (httpx.post(url, json={"purpose": "batch"}), "file"),
        (httpx.post(url, files={"other": b"x"}, data=form), "file"),
        (httpx.post(url, files={"file": b"x"}, data={"purpose": "fun"}), "purpose"),
        (httpx.post(url, files={"file": b"x"}), "purpose"),
    ):
        assert answer.status_code == 400 and error_of(answer)["param"] == param
    large = httpx.post(url, content=b"x" * (files_module.MAX_FILE + 1))
    assert large.status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"", b"--b", b"--b--", b"--b\r\n\r\nx\r\n--b--", b"--b\r\nname\r\n--b--", b'--b\r\nx; name="a"\r\n\r\nx\r\n'],
)
def test_broken_multipart_bodies(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parts_of(body, "multipart/form-data; boundary=b")


def test_many_parts_and_odd_boundaries() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    with pytest.raises(InvalidRequest, match="parts"):
        parts_of(part * 100_000 + b"--b--", "multipart/form-data; boundary=b")
    for boundary in ("", "=", '"', '"' * 100_000, "b" * 100_000, ";" * 100_000, " " * 100_000, '"b', "\\" * 100_000):
        with pytest.raises(InvalidRequest):
            parts_of(part.replace(b"--b", b"--other"), f"multipart/form-data; boundary={boundary}")


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path / "files")
    assert store.all(ANYONE) == []
    with pytest.raises(NotFound):
        store.get("file-" + "0" * 32, ANYONE)
    monkeypatch.setattr(files_module, "MAX_FILES", 2)
    first = store.add(b"a", "a", "batch")
    store.add(b"b", "b", "batch")
    with pytest.raises(OctavoError, match="no room"):
        store.add(b"c", "c", "batch")
    store.delete(first["id"], ANYONE)
    monkeypatch.setattr(files_module, "MAX_BYTES", 10)
    with pytest.raises(OctavoError, match="no room"):
        store.add(b"x" * 10, "c", "batch")
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "files").iterdir())


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch(client: openai.OpenAI) -> None:
    """Every line is answered as its request would be, a faulty one in the file of errors."""
    lines = [*(line(number) for number in range(20)), line(99, temperature=-1)]
    batch = run(client, lines)
    assert batch.status in ("validating", "in_progress") and batch.metadata == {"a": "b"}
    batch = ended(client, batch)
    assert batch.status == "completed" and batch.completed_at
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (21, 20, 1)
    found = results(client, batch.output_file_id)
    assert set(found) == {f"line-{number}" for number in range(20)}
    assert all(each["status_code"] == 200 for each in found.values())
    plain = client.completions.create(model="smol", prompt="Number 7 is", max_tokens=8, temperature=0)
    assert found["line-7"]["body"]["choices"][0]["text"] == plain.choices[0].text
    (failed,) = results(client, batch.error_file_id).values()
    assert failed["status_code"] == 400 and failed["body"]["error"]["param"] == "temperature"
    assert batch.id in {each.id for each in client.batches.list(limit=1)}


def test_chats_and_responses(client: openai.OpenAI) -> None:
    for endpoint, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 4}),
    ):
        batch = ended(client, run(client, [{**line(1), "url": endpoint, "body": body}], endpoint))
        (found,) = results(client, batch.output_file_id).values()
        assert found["status_code"] == 200 and found["body"]["usage"]["total_tokens"] > 4


def test_a_file_that_is_no_batch_fails(client: openai.OpenAI, tmp_path: Path) -> None:
    wrong = [
        "{",
        "[]",
        {**line(1), "url": "/v1/x"},
        {**line(2), "method": "GET"},
        line(3),
        line(3),
        {**line(4), "body": 1},
    ]
    batch = ended(client, run(client, wrong))
    assert batch.status == "failed" and batch.output_file_id is None
    told = [(each.code, each.line) for each in batch.errors.data]
    assert told == [
        ("invalid_json_line", 1), ("invalid_request", 2), ("mismatched_endpoint", 3), ("invalid_method", 4),
        ("duplicate_custom_id", 6), ("invalid_request", 7),
    ]  # fmt: skip
    (tmp_path / "empty").write_bytes(b"\n\n")
    assert read_lines(tmp_path / "empty", COMPLETIONS)[1][0]["code"] == "empty_file"
    with pytest.raises(openai.BadRequestError):
        run(client, [line(1)], "/v1/edits")
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-none", endpoint=COMPLETIONS, completion_window="24h")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_cancelling(client: openai.OpenAI) -> None:
    batch = run(client, [line(number, max_tokens=900, ignore_eos=True) for number in range(64)])
    while client.batches.retrieve(batch.id).status == "validating":
        time.sleep(0.02)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    assert batch.status == "cancelled" and batch.cancelled_at
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_batch_outlives_its_server(tmp_path: Path) -> None:
    """Killed while it runs; the next server of the same state answers what is left, and nothing twice."""
    count = 60
    server = Live(tmp_path)
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client:
        batch = run(client, [line(number, max_tokens=24, ignore_eos=True) for number in range(count)])
        while client.batches.retrieve(batch.id).request_counts.completed < 10:
            time.sleep(0.02)
    server.stop(signal.SIGKILL)
    state = next((tmp_path / "batches").glob("*.output"))
    state.write_bytes(state.read_bytes() + b'{"id":"batch_req_half')
    before = len(state.read_bytes().splitlines()) - 1
    assert 10 <= before < count
    server = Live(tmp_path)
    try:
        with openai.OpenAI(base_url=server.url + "/v1", api_key="none") as client:
            batch = ended(client, client.batches.retrieve(batch.id))
            assert batch.status == "completed"
            assert (batch.request_counts.completed, batch.request_counts.failed) == (count, 0)
            assert len(results(client, batch.output_file_id)) == count
    finally:
        assert server.stop() == 0
