"""docs/models.md says what the tables hold and what the record saw; the record is of passed tests."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.checkpoints.families import FAMILIES
from octavo.cli import models_page
from octavo.quantization.format import FORMATS
from tests import model_record, real, tiny


def rows(page: str) -> dict[str, list[str]]:
    """First cell -> the others, of all tables."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {first.strip("`"): rest for first, *rest in lines}


def test_every_family_and_format_has_a_row_and_every_weight_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(suite: str, formats: str, model: str = "", family: str = "llama") -> dict[str, str]:
        weights = "real" if model else "random"
        return {
            "suite": suite,
            "family": family,
            "file": "gguf",
            "formats": formats,
            "weights": weights,
            "model": model,
        }

    record = [
        ran("tests/models/test_a.py", "f32 q4_1", "Model B"),
        ran("tests/models/test_b.py", "q8_0"),
        ran("tests/execution/test_c.py", "q4_k", "Model A"),
        ran("tests/engine/test_d.py", "q6_k", family="refused"),
    ]
    monkeypatch.setattr(models_page, "RECORD", tmp_path / "models.json")
    found = rows(models_page.models())
    assert set(FAMILIES) <= set(found) and {name.upper() for name in FORMATS} <= set(found)
    assert set(found["llama"][1:]) == {"–"}
    (tmp_path / "models.json").write_text(json.dumps(record))
    found = rows(models_page.models())
    assert found["llama"] == [
        "models/llama.py", "**real** (Model B), *random*", "**real** (Model A)", "–", "–",
        ", ".join(f"**{name}**" if name != "q8_0" else name for name in FORMATS if name in "f32 q4_1 q8_0 q4_k"),
    ]  # fmt: skip
    assert found["Q4_1"][2:] == ["**real** (Model B)", "–", "–", "–"] and found["Q8_0"][2] == "*random*"
    assert found["Q6_K"][2:] == ["–", "–", "*random*", "–"] and "refused" not in found
    assert found["llama3.2:1b"] == ["llama", "meta-llama/Llama-3.2-1B-Instruct"]


def test_the_record_is_of_passed_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "models.json"
    record.write_text(json.dumps([{"suite": "tests/old.py"}, {"suite": "tests/new.py"}]))
    monkeypatch.setattr(model_record, "RECORD", record)
    monkeypatch.setattr(Checkpoint, "__init__", Checkpoint.__init__)  # put back at the end
    recorder = model_record.Recorder()
    open_checkpoint(real.smollm2())
    for outcome in ("failed", "passed"):
        open_checkpoint(tiny.gguf_file(tmp_path / f"{outcome}.gguf", quantization="q8_0"))
        report = SimpleNamespace(when="call", passed=outcome == "passed", nodeid=f"tests/{outcome}.py::test_it")
        recorder.pytest_runtest_logreport(report)  # type: ignore[arg-type]
    recorder.passed["tests/new.py"] = set()
    recorder.pytest_sessionfinish()
    kept = json.loads(record.read_text())
    assert [each["suite"] for each in kept] == ["tests/passed.py", "tests/passed.py", "tests/old.py"]
    assert {(each.get("weights"), each.get("model")) for each in kept[:2]} == {
        ("real", "SmolLM2-135M-Instruct"), ("random", ""),
    }  # fmt: skip
