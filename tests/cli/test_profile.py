"""`octavo profile` on a tiny model: its table and its JSON. The ceilings are given: measuring them takes a gigabyte."""

import json
from pathlib import Path

import pytest

from octavo.cli import profile
from octavo.execution.ceilings import Ceilings
from tests import tiny

CEILINGS = Ceilings("avx2", 1, 20e9, 400e9, 200e9)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(profile, "measure", lambda **_: CEILINGS)
    path = tiny.gguf_file(tmp_path / "tiny.gguf")
    sizes = ["--batch", "3", "--context", "20", "--prefill", "70", "--threads", "1"]
    return [str(path), *sizes, "--cache-dir", str(tmp_path), "--state-dir", str(tmp_path)]


def call(arguments: list[str]) -> None:
    profile.command.main(arguments, prog_name="octavo profile", standalone_mode=False)


def test_the_table_has_every_kind_of_phase(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert "read 20.0 GB/s, int8 400 GOP/s, bf16 200 GOP/s" in lines[0]
    titles = [line.split(" · ")[0] for line in lines if " tok/s" in line]
    assert titles == ["decode, batch 1, context 20", "decode, batch 3, context 20", "prefill, 70 tokens in one step"]
    kinds = [" ".join(line.split("  ")[0].split()) for line in lines if " ms " in line and " tok/s" not in line]
    wanted = [
        "embedding q8_0 embed_tokens", "linear q8_0 q_proj+k_proj+v_proj", "attention", "linear q8_0 o_proj",
        "linear q8_0 gate_proj+up_proj", "linear q8_0 down_proj", "head q8_0 lm_head", "sample", "all",
    ]  # fmt: skip
    assert [kind for kind in kinds if not kind.startswith("idle")] == 3 * wanted
    assert sum(line.startswith("idle between ops ") and "· Python " in line for line in lines) == 3


def test_json_has_all_figures(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    call([*arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ceilings"]["read_bytes_per_second"] == 20e9
    assert [each["batch"] for each in found["profiles"]] == [1, 3, 1]
    for each in found["profiles"]:
        spent = sum(row["seconds"] for row in each["rows"])
        assert spent + each["idle"] + each["python"] == pytest.approx(each["seconds"])
        for row in each["rows"]:
            peak = 400e9 if row["integer"] else 200e9
            assert row["roof_seconds"] == pytest.approx(max(row["bytes"] / 20e9, row["operations"] / peak))


def test_room_is_made_only_where_nothing_was_asked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from octavo.errors import DoesNotFit

    with pytest.raises(DoesNotFit, match="3 slots; there are"):
        call([*arguments, "--max-num-seqs", "2"])
