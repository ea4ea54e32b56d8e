"""Models in several GGUF files, written by the gguf package: equal to the whole file; broken sets name the file."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.checkpoints.gguf_shards import MAX_PARTS, part_names
from octavo.errors import CheckpointError, ModelNotFound
from tests.checkpoints.test_gguf import PLAIN

TENSORS = {"token_embd.weight": (32, 64), **{f"blk.0.{name}.weight": (64, 64) for name in ("a", "b", "c")}}
FIRST, SECOND = "model-Q8_0-00001-of-00002.gguf", "model-Q8_0-00002-of-00002.gguf"


def write(path: Path, per_file: int = 0) -> list[Path]:
    """A small model, in one file or with at most `per_file` tensors in each."""
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=per_file)
    for name, value in PLAIN.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{name}", value)
    writer.add_token_list([f"t{i}" for i in range(32)])
    rng = np.random.default_rng(0)
    for name, shape in TENSORS.items():
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob("*.gguf"))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    found = write(tmp_path / "parts" / "model-Q8_0.gguf", per_file=2)
    assert [file.name for file in found] == [FIRST, SECOND]
    return found


def test_any_part_and_the_folder_open_the_whole_model(tmp_path: Path, parts: list[Path]) -> None:
    (whole,) = write(tmp_path / "whole" / "model-Q8_0.gguf")
    expected = open_checkpoint(whole)
    for path in (*parts, parts[0].parent):
        found = open_checkpoint(path)
        assert found.path == parts[0] and found.files == tuple(parts) and found.display_name == "model"
        assert found.config == expected.config and list(found.tensors) == list(expected.tensors)
        assert found.tokenizer_metadata() == expected.tokenizer_metadata()
        for name in TENSORS:
            assert found.read(name).tobytes() == expected.read(name).tobytes()
    assert {tensor.file for tensor in found.tensors.values()} == set(parts)
    assert len({open_checkpoint(path).digest() for path in parts}) == 1


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for path in (parts[0], parts[0].parent):
        with pytest.raises(CheckpointError, match=f"{FIRST} is one of 2 parts and .* lacks {SECOND}: fetch"):
            open_checkpoint(path)
    parts[0].rename(parts[1])
    with pytest.raises(CheckpointError, match=f"{SECOND} is one of 2 parts and .* lacks {FIRST}"):
        open_checkpoint(parts[0].parent)


def test_exchanged_parts_are_told(parts: list[Path]) -> None:
    first, second = (path.read_bytes() for path in parts)
    parts[0].write_bytes(second)
    parts[1].write_bytes(first)
    with pytest.raises(CheckpointError, match=f"{FIRST}: key 'split.no' is 1, by its name it is 0: two files"):
        open_checkpoint(parts[1])


def change(path: Path, key: str, code: str, value: int) -> None:
    """Overwrites a number of the header in place."""
    raw = bytearray(path.read_bytes())
    at = raw.index(key.encode()) + len(key) + 4
    struct.pack_into(f"<{code}", raw, at, value)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "key, code, value, told",
    [
        ("split.count", "H", 3, "'split.count' is 3, the other parts say 2"),
        ("split.count", "H", 1, "'split.count' is 1, the other parts say 2"),
        ("split.count", "H", MAX_PARTS + 1, f"'split.count' is {MAX_PARTS + 1}, not a number up to"),
        ("split.no", "H", 0, "'split.no' is 0, by its name it is 1"),
        ("split.tensors.count", "i", 5, "'split.tensors.count' is 5, the parts have 4 tensors"),
    ],
)
def test_parts_that_do_not_belong_together(parts: list[Path], key: str, code: str, value: int, told: str) -> None:
    change(parts[1], key, code, value)
    with pytest.raises(CheckpointError, match=f"{SECOND}: key {told}"):
        open_checkpoint(parts[0])


def test_a_part_of_another_model_with_the_same_tensors(tmp_path: Path, parts: list[Path]) -> None:
    raw = bytearray(parts[0].read_bytes())
    parts[1].write_bytes(raw)
    change(parts[1], "split.no", "H", 1)
    with pytest.raises(CheckpointError, match=f"{SECOND}: tensor 'token_embd.weight' is also in {FIRST} .offset 0x"):
        open_checkpoint(parts[0])


def test_a_part_needs_its_name(parts: list[Path]) -> None:
    other = parts[0].rename(parts[0].with_name("renamed.gguf"))
    with pytest.raises(CheckpointError, match="'split.count' is 2, so the file must be called NAME-00001-of-00002"):
        open_checkpoint(other)
    with pytest.raises(ModelNotFound, match=f"several GGUF files; name one of them: {FIRST}, renamed.gguf"):
        open_checkpoint(other.parent)


def test_a_cut_part_is_named(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=f"{SECOND}: tensor .* The download is probably incomplete"):
        open_checkpoint(parts[0])


def test_names_of_parts() -> None:
    assert part_names("a/b-00002-of-00003.gguf") == [f"a/b-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    assert part_names("b-2-of-3.gguf") == ["b-2-of-3.gguf"]
    assert len(part_names("b-00001-of-99999.gguf")) == MAX_PARTS + 1
