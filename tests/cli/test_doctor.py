"""`octavo doctor`: a sound machine passes, and each thing that is wrong is found, with what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.cli import checks
from octavo.cli.doctor import page
from octavo.config import EngineConfig
from octavo.machine import Group, read_machine
from tests import real
from tests.cli.command_line import Serving, octavo


def findings(home: Path, *args: str, code: int = 0, **more: str) -> dict[str, dict[str, Any]]:
    found = octavo(home, "doctor", "--json", *args, **more)
    assert found.returncode == code, found.stdout + found.stderr
    told = sorted(json.loads(found.stdout), key=lambda each: -("ok", "warn", "fail").index(each["level"]))
    made = {each["name"]: each for each in reversed(told)}  # of several the worst
    assert all(each["todo"] for each in made.values() if each["level"] != "ok" and each["name"] != "environment")
    return made


def test_a_sound_machine(home: Path, serving: Serving) -> None:
    found = findings(home, OCTAVO_ARG_PORT=serving.url.rsplit(":", 1)[1])
    for name in ("octavo", "packages", "kernels", "cache", "state", "model", "checksum", "address"):
        assert found[name]["level"] == "ok", found[name]
    assert found["checksum"]["told"].endswith("as it should be") and "octavo" in found["address"]["told"]
    text = octavo(home, "doctor", "--quick").stdout
    assert "ok    octavo " in text and "checksum" not in text


def test_what_is_wrong_is_found(home: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    blobs, snapshot = (hub / "models--a--b" / each for each in ("blobs", "snapshots/" + "0" * 40))
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / ("f" * 64)).write_bytes(b"not what it was")
    (snapshot / "model.safetensors").symlink_to(blobs / ("f" * 64))
    (tmp_path / "file").touch()
    own = {"HF_HUB_CACHE": str(hub), "OCTAVO_STATE": str(tmp_path / "file" / "below"), "LLAMA_API_KEY": "x"}
    found = findings(home, "absent", "--all", "--host", "192.0.2.1", "--threads", "999", code=1, **own)
    levels = {name: each["level"] for name, each in found.items()}
    assert levels["state"] == levels["address"] == levels["checksum"] == "fail"
    assert levels["model"] == levels["threads"] == levels["environment"] == "warn"
    assert "should be ffffffffffff" in found["checksum"]["told"] and "octavo pull absent" in found["model"]["todo"]
    small = findings(home, "--quick", "--max-model-len", "8192", "--kv-cache-memory", "1MiB", code=1)
    assert small["model"]["level"] == "fail" and "--max-model-len" in small["model"]["todo"]


def test_limits_of_the_machine() -> None:
    machine = read_machine()
    tight = replace(machine, quota=1.5, groups=(Group("/box", 600 << 20, 500 << 20, 0),))
    found = {each.name: each for each in (*checks.threads(tight, EngineConfig()), *checks.memory(tight))}
    assert found["quota"].level == found["memory"].level == "warn" and "/box" in found["memory"].told
    lacking = list(checks.processor(replace(machine, isa="portable"), EngineConfig()))
    assert lacking[0].level in ("ok", "warn") and "runs" in lacking[0].told
    assert page([checks.Finding("warn", "x", "y", "z")]) == ["warn  x  y", "      → z"]


def test_sums_that_are_known(tmp_path: Path) -> None:
    assert checks.known_sum(real.smollm2()) == real.MODELS["smollm2-135m-instruct"].sha256
    (tmp_path / "own.gguf").write_bytes(b"x")
    assert checks.known_sum(tmp_path / "own.gguf") is None
    (one,) = checks.sums([tmp_path / "own.gguf"], lambda what, done, total: None)
    assert one.level == "ok" and "nobody tells its sum" in one.told
