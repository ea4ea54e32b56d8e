"""The file of packed weights: equal bits, one write, every damage noticed and repaired, and never a failed start."""

import logging
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.engine import startup
from octavo.execution import packed_file
from octavo.execution.packed_file import LARGE, PackedFile, checksum, wanted
from octavo.execution.weights import ALIGN
from tests import tiny


def config(folder: Path, **options: object) -> EngineConfig:
    places = {"cache_dir": str(folder / "cache"), "state_dir": str(folder / "state")}
    return EngineConfig(**({"packed_cache": "on", "max_model_len": 256, "threads": 2} | places | options))  # type: ignore[arg-type]


def loaded(folder: Path, **options: object) -> startup.LoadedModel:
    file = folder / "model.gguf"
    if not file.exists():
        tiny.gguf_file(file, quantization="q4_1")
    return startup.load_model(file, config(folder, **options))


def kept(folder: Path) -> tuple[Path, bytes]:
    """A model whose packed file is written, and the bytes of its weights."""
    first = loaded(folder)
    assert not first.mapped and first.packed is not None and not first.packed.usable
    region = first.executor.region("weights")
    first.packed.keep_later(region, first.executor).join(30)
    assert first.packed.usable
    return first.packed.path, bytes(region)


def test_the_second_start_maps_what_the_first_one_packed(tmp_path: Path) -> None:
    path, weights = kept(tmp_path)
    second = loaded(tmp_path)
    assert second.mapped and bytes(second.executor.region("weights")) == weights
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [each.name for each in path.parent.iterdir()] == [path.name]
    assert startup.fit_cost(second.runner).fixed >= 0  # steps run on it
    assert second.executor.memory()["weights"] == len(weights) == second.plan.regions.weights
    assert str(path) in Path("/proc/self/maps").read_text()  # the file's own pages, shared with other processes
    assert "(packed file)" in "\n".join(startup.summary(second, config(tmp_path)))


def test_off_and_small_models_keep_nothing(tmp_path: Path) -> None:
    for option in ("off", "auto"):
        assert loaded(tmp_path, packed_cache=option).packed is None
    assert not (tmp_path / "cache" / "packed").exists()
    assert wanted("auto", LARGE) and not wanted("auto", LARGE - 1) and wanted("on", 0) and not wanted("off", LARGE)


@pytest.mark.parametrize("damage", ["flip", "cut", "longer", "trailer", "empty", "writable", "link", "folder"])
def test_a_damaged_file_is_told_and_packed_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path, weights = kept(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
    elif damage == "trailer":
        content[-1] ^= 1
    elif damage in ("cut", "empty"):
        del content[len(content) // 2 if damage == "cut" else 0 :]
    elif damage == "longer":
        content += b"x"
    if damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content)
        path.chmod(0o602 if damage == "writable" else 0o600)
    with caplog.at_level(logging.WARNING):
        again = loaded(tmp_path)
    assert not again.mapped and str(path) in caplog.text
    assert bytes(again.executor.region("weights")) == weights
    if damage != "folder":
        assert again.packed is not None and again.packed.keep(again.executor.region("weights"))
        assert loaded(tmp_path).mapped


def test_another_file_or_place_is_another_name(tmp_path: Path) -> None:
    first = loaded(tmp_path)
    assert first.packed is not None
    places, nbytes = first.plan.layouts.places, first.packed.nbytes
    names = {PackedFile.of(tmp_path, digest, places, nbytes, 1).path for digest in ("a", "b")}
    fewer = dict(list(places.items())[1:])
    assert len(names | {PackedFile.of(tmp_path, "a", fewer, nbytes, 1).path}) == 3
    assert PackedFile.of(tmp_path, "a", places, nbytes, 7).path in names  # threads decide nothing


def test_what_cannot_be_written_is_told_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = np.zeros(4 * ALIGN, np.uint8)
    (tmp_path / "packed").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert not PackedFile(tmp_path / "packed" / "a.weights", region.size, 1).keep(region)
        assert "not kept" in caplog.text
        caplog.clear()
        monkeypatch.setattr(packed_file, "FREE_SHARE", 1 << 50)
        assert not PackedFile(tmp_path / "cache" / "a.weights", region.size, 1).keep(region)
        assert "MiB free" in caplog.text and not list((tmp_path / "cache").iterdir())


def test_unfinished_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "old.tmp", tmp_path / "new.tmp"
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (1, 1))
    region = np.arange(2 * ALIGN, dtype=np.uint8)
    assert PackedFile(tmp_path / "a.weights", region.size, 1).keep(region)
    assert not old.exists() and new.exists()


@given(st.integers(1, 700), st.integers(1, 5), st.integers(0, 2**31), st.integers(0, 7))
def test_any_flipped_bit_changes_the_checksum(pages: int, threads: int, where: int, bit: int) -> None:
    region = np.random.default_rng(pages).integers(0, 256, pages * ALIGN, dtype=np.uint8)
    stated = checksum(region, 1)
    assert checksum(region, threads) == stated
    region[where % region.size] ^= 1 << bit
    assert checksum(region, threads) != stated
