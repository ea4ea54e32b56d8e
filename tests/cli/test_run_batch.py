"""`octavo run-batch`: every request is answered once, in order, whatever ended an earlier run."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo.cli.batch_file import Output, read_input
from octavo.errors import ConfigError
from tests.cli.command_line import OCTAVO, SMALL, WAIT, Serving, environment, octavo, until


def request(id_: str, tokens: int = 4, url: str = "/v1/chat/completions", **more: Any) -> dict[str, Any]:
    asked = {"prompt": f"{id_}:"} if url == "/v1/completions" else {"messages": [{"role": "user", "content": id_}]}
    body = {"max_tokens": tokens, "temperature": 0, **asked, **more}
    return {"custom_id": id_, "method": "POST", "url": url, "body": body}


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def text(row: dict[str, Any]) -> str:
    choice = row["response"]["body"]["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def test_a_file_is_answered_the_same_here_and_by_a_server(home: Path, serving: Serving, tmp_path: Path) -> None:
    asked = [request(f"q{n}", url=("/v1/chat/completions", "/v1/completions")[n % 2]) for n in range(9)]
    asked += [request("wrong", temperature=-1), request("other", model="gpt-5")]
    given, own, served = write(tmp_path / "in.jsonl", asked), tmp_path / "own.jsonl", tmp_path / "served.jsonl"
    found = octavo(home, "run-batch", "-i", str(given), "-o", str(own), *SMALL)
    assert found.returncode == 1 and "9 answered, 2 failed" in found.stdout, found.stderr
    assert "11 of 11 requests" in found.stderr
    made = rows(own)
    assert [each["custom_id"] for each in made] == [each["custom_id"] for each in asked]
    assert [each["response"]["status_code"] for each in made] == [200] * 9 + [400, 404]
    assert "temperature" in made[9]["response"]["body"]["error"]["message"]
    again = octavo(home, "run-batch", "-i", str(given), "-o", str(own), *SMALL)
    assert rows(own) == made and "11 of them answered before" in again.stderr  # no engine was started for that
    octavo(home, "run-batch", "-i", str(given), "-o", str(served), "--url", serving.url)
    assert [text(each) for each in rows(served)[:9]] == [text(each) for each in made[:9]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_second_run_goes_on(home: Path, serving: Serving, tmp_path: Path, number: int) -> None:
    given = write(tmp_path / "in.jsonl", [request(f"q{n}", 16) for n in range(40)])
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    args = ["run-batch", "-i", str(given), "--max-concurrency", "2", *SMALL]
    process = subprocess.Popen(
        [*OCTAVO, *args, "-o", str(out)], env=environment(home), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for _ in until("answers"):
        if out.exists() and out.read_bytes().count(b"\n") >= 3:
            break
    process.send_signal(number)
    process.wait(WAIT)
    before = [line for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")]
    assert 3 <= len(before) < 40
    with out.open("a") as file:
        file.write('{"custom_id": "q39", "respon')  # as a death in the midst of a write leaves it
    found = octavo(home, *args, "-o", str(out))
    assert found.returncode == 0 and f"{len(before)} of them answered before" in found.stderr, found.stderr
    after = out.read_text().splitlines(keepends=True)
    assert [json.loads(line)["custom_id"] for line in after] == [f"q{n}" for n in range(40)]
    assert set(before) <= set(after)  # those were not asked again
    octavo(home, "run-batch", "-i", str(given), "-o", str(whole), "--url", serving.url)
    assert [text(each) for each in rows(whole)] == [text(each) for each in rows(out)]


def test_what_is_wrong_is_told_before_anything_runs(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    twice = [request("a"), request("a"), {**request("b"), "method": "GET"}, {**request("c"), "url": "/x"}, ["d"]]
    found = octavo(home, "run-batch", "-i", str(write(tmp_path / "in.jsonl", twice)), "-o", str(out))
    assert found.returncode == 2 and not out.exists()
    for said in ("line 2: custom_id 'a' is given twice", "line 3: method", "line 4: url", "line 5: expected an object"):
        assert said in found.stderr
    (tmp_path / "broken.jsonl").write_text('{"custom_id": "a"')
    assert "line 1: not valid JSON" in octavo(
        home, "run-batch", "-i", str(tmp_path / "broken.jsonl"), "-o", str(out)
    ).stderr  # fmt: skip
    for args, said in (
        (["-o", str(out)], "both files"),
        (["-i", str(tmp_path / "absent"), "-o", str(out)], "No such file"),
    ):
        found = octavo(home, "run-batch", *args)
        assert found.returncode == 2 and said in found.stderr
    mistaken = octavo(home, "run", "in.jsonl")
    assert mistaken.returncode == 2 and "Did you mean octavo run-batch -i in.jsonl" in mistaken.stderr


def test_an_output_of_another_batch_is_left_alone(tmp_path: Path) -> None:
    wanted = read_input(write(tmp_path / "in.jsonl", [request("a"), request("b"), request("c")]))
    path = tmp_path / "out.jsonl"
    for other in ('{"custom_id": "z", "response": {"status_code": 200}}\n', "hello\n", '{"custom_id": "a"}\n'):
        path.write_text(other)
        with pytest.raises(ConfigError, match="--overwrite"):
            Output(path, wanted, False)
        assert path.read_text() == other
    Output(path, wanted, True).close()
    assert path.read_text() == ""


def test_errors_of_the_server_are_asked_again(tmp_path: Path) -> None:
    wanted = read_input(write(tmp_path / "in.jsonl", [request("a"), request("b"), request("c")]))
    first = Output(tmp_path / "out.jsonl", wanted, False)
    first.add("b", 200, b'{"x": 1}')
    first.add("c", 500, b"no JSON at all")
    first.add("a", 400, b'{"error": {"message": "no"}}')
    first.close()
    second = Output(tmp_path / "out.jsonl", wanted, False)
    assert second.again == 1 and list(second.known) == ["b", "a"] and second.failed == 1
    second.add("c", 200, b'{"x": 2}')
    second.in_order(wanted)
    assert [each["custom_id"] for each in rows(tmp_path / "out.jsonl")] == ["a", "b", "c"]
    assert rows(tmp_path / "out.jsonl")[2]["response"]["body"] == {"x": 2}
