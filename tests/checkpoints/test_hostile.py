"""Hostile files: each ends in one clear error or reads as a whole; nothing else is raised, memory stays bounded."""

import json
import struct
import subprocess
import sys
import tracemalloc

import gguf
import numpy as np
import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.quantization.format import FORMATS, format_named
from tests.checkpoints.test_gguf import PLAIN

MUTANTS = 200
SPARE = 4 << 20  # the window of the reader, the modules imported on the way


def tiny_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in PLAIN.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"llama.{name}", value)
    writer.add_chat_template("{{ messages }}")
    writer.add_token_list([f"t{i}" for i in range(32)])
    writer.add_token_types([1] * 32)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    for name, kind in (("token_embd.weight", "Q8_0"), ("blk.0.attn_q.weight", "Q4_1"), ("blk.0.attn_k.weight", "Q4_0")):
        number = gguf.GGMLQuantizationType[kind]
        values = rng.standard_normal((32, 64)).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, number), raw_dtype=number)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def tiny_folder(path):
    import safetensors.numpy

    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}))
    tensors = {f"layer.{i}.weight": np.full((4, 8), i, np.float32) for i in range(4)}
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return (path / "model.safetensors").read_bytes()


def mutate(raw: bytes, rng: np.random.Generator, header: int) -> bytes:
    """One to three changes, most of them in the first `header` bytes."""
    changed = bytearray(raw)  # never cut to nothing: position 0 stays
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, min(header, len(changed)) if rng.random() < 0.9 else len(changed)))
        match rng.integers(0, 7):
            case 0:
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                changed[at] = int(rng.choice([0, 1, 0x22, 0x7F, 0x80, 0xFF]))
            case 2:
                extreme = int(rng.choice(np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1], np.uint64)))
                changed[at : at + 8] = extreme.to_bytes(8, "little")
            case 3:
                changed[at : at + 4] = int(rng.choice([0, 9, 255, 2**31, 2**32 - 1])).to_bytes(4, "little")
            case 4:
                del changed[max(1, at) : at + int(rng.integers(2, 64))]
            case 5:
                changed[at:at] = changed[at : at + int(rng.integers(1, 64))]
            case _:
                del changed[max(1, at) :]
    return bytes(changed)


def read_everything(path) -> str:
    """Opens and reads all; '' for success, else the message of the one permitted kind of error."""
    try:
        checkpoint = open_checkpoint(path)
        checkpoint.tokenizer_metadata()
        for tensor in checkpoint.tensors.values():
            raw = checkpoint.read(tensor.name)
            assert raw.size == tensor.nbytes
            if tensor.format in FORMATS:
                assert format_named(tensor.format).dequantize(raw, tensor.shape).shape == tensor.shape
    except (CheckpointError, UnsupportedModel) as error:
        return str(error)
    return ""


def check_bounded(path, size: int) -> str:
    """read_everything, with the memory it took at most."""
    tracemalloc.start()
    try:
        said = read_everything(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # tensors of 4-bit blocks grow 32 / 5 times when the test itself turns them into float32
    assert peak < 10 * size + SPARE, f"{peak:,} bytes for a file of {size:,}"
    return said


def test_mutated_gguf_files(tmp_path):
    raw = tiny_gguf(tmp_path / "whole.gguf")
    path = tmp_path / "mutant.gguf"
    path.write_bytes(raw)
    assert check_bounded(path, len(raw)) == ""
    rng, refused = np.random.default_rng(1), 0
    for _ in range(MUTANTS):
        path.write_bytes(mutate(raw, rng, 1700))
        said = check_bounded(path, path.stat().st_size)
        refused += bool(said)
        if said:
            assert "mutant.gguf" in said and "\n" not in said and len(said) < 500, said
            # file, key or tensor, and offset; a key that is not there has no offset
            assert "offset 0x" in said or "is missing" in said or "general.architecture" in said, said
    assert refused > MUTANTS / 2  # the mutations are not harmless ones


def test_mutated_safetensors_files(tmp_path):
    raw = tiny_folder(tmp_path)
    header = 8 + int.from_bytes(raw[:8], "little")
    path = tmp_path / "model.safetensors"
    assert check_bounded(tmp_path, len(raw)) == ""
    rng, refused = np.random.default_rng(2), 0
    for _ in range(MUTANTS):
        path.write_bytes(mutate(raw, rng, header))
        said = check_bounded(tmp_path, path.stat().st_size)
        refused += bool(said)
        if said:
            assert "model.safetensors" in said and "\n" not in said and len(said) < 500, said
    assert refused > MUTANTS / 2


def test_mutated_configurations(tmp_path):
    tiny_folder(tmp_path)
    path = tmp_path / "config.json"
    raw = path.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(MUTANTS):
        path.write_bytes(mutate(raw, rng, len(raw)))
        said = check_bounded(tmp_path, 4096)
        assert not said or "config.json" in said, said


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def handmade(keys=(), tensors=(), *, magic=b"GGUF", version=3, counts=None, data=b"") -> bytes:
    """A GGUF file from raw parts. keys: encoded entries; tensors: (name, dims, type, offset)."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    raw = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys)
    for name, dims, kind, offset in tensors:
        raw += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        raw += struct.pack("<IQ", kind, offset)
    return raw + bytes(-len(raw) % 32) + data


ARCH = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
FLOATS = (b"w", (8,), 0, 0)  # 32 bytes

HANDMADE = {
    "empty": (b"", "needs 24 bytes"),
    "other magic": (handmade(magic=b"GGML"), "not a GGUF file"),
    "version 1": (handmade(version=1), "version 1; supported: 2, 3"),
    "version 4": (handmade(version=4), "version 4"),
    "big-endian": (handmade(version=3 << 24), "big-endian"),
    "2^32 keys": (handmade(counts=(0, 2**32)), "announces 4,294,967,296 keys"),
    "2^63 tensors": (handmade(counts=(2**63, 0)), "tensors"),
    "a key too many": (handmade([ARCH], counts=(0, 2)), "empty name|ends at"),
    "empty key": (handmade([text(b"") + struct.pack("<IB", 0, 1)]), "empty name"),
    "key twice": (handmade([ARCH, ARCH]), "'general.architecture' stands in the file twice"),
    "key of 2^63 bytes": (handmade([struct.pack("<Q", 2**63) + b"a" * 32]), "its name has 9,223,372"),
    "key not UTF-8": (handmade([text(b"\xff\xfe") + struct.pack("<IB", 0, 1)]), "not UTF-8"),
    "value type 99": (handmade([text(b"a") + struct.pack("<IQ", 99, 1)]), "unknown value type 99"),
    "string of 2^40 bytes": (handmade([text(b"a") + struct.pack("<IQ", 8, 2**40)]), "1,099,511,627,776 bytes"),
    "array of arrays": (handmade([text(b"a") + struct.pack("<IIQ", 9, 9, 1)]), "unsupported type 9"),
    "array of 2^61": (handmade([text(b"a") + struct.pack("<IIQ", 9, 10, 2**61)]), "elements"),
    "array of 2^64 - 1 strings": (handmade([text(b"a") + struct.pack("<IIQ", 9, 8, 2**64 - 1)]), "elements"),
    "string in an array too long": (
        handmade([text(b"a") + struct.pack("<IIQQ", 9, 8, 1, 2**50)], data=bytes(64)), "a string that ends at byte"),
    "alignment 0": (handmade([text(b"general.alignment") + struct.pack("<II", 4, 0)]), "general.alignment' is 0"),
    "alignment 3": (handmade([text(b"general.alignment") + struct.pack("<II", 4, 3)]), "is 3, not a power of two"),
    "alignment 2^31": (handmade([text(b"general.alignment") + struct.pack("<II", 4, 2**31)]), "is 2147483648"),
    "alignment of text": (handmade([text(b"general.alignment") + struct.pack("<I", 8) + text(b"32")]), "is 32, not"),
    "no dimensions": (handmade([ARCH], [(b"w", (), 0, 0)], data=bytes(32)), "has 0 dimensions"),
    "five dimensions": (handmade([ARCH], [(b"w", (1,) * 5, 0, 0)], data=bytes(32)), "has 5 dimensions"),
    "dimension 0": (handmade([ARCH], [(b"w", (8, 0), 0, 0)], data=bytes(32)), "impossible shape"),
    "product wraps": (handmade([ARCH], [(b"w", (2**32, 2**32), 0, 0)], data=bytes(32)), "impossible shape"),
    "bytes wrap": (handmade([ARCH], [(b"w", (2**61,), 0, 0)], data=bytes(32)), "ends at byte"),
    "type 4096": (handmade([ARCH], [(b"w", (8,), 4096, 0)], data=bytes(32)), "unknown type 4096"),
    "ragged blocks": (handmade([ARCH], [(b"w", (33,), 2, 0)], data=bytes(32)), "block of 32"),
    "no name": (handmade([ARCH], [(b"", (8,), 0, 0)], data=bytes(32)), "empty name"),
    "name twice": (handmade([ARCH], [FLOATS, FLOATS], data=bytes(64)), "tensor 'w' stands in the file twice"),
    "misaligned": (handmade([ARCH], [(b"w", (8,), 0, 4)], data=bytes(64)), "not a multiple of the alignment 32"),
    "overlap": (handmade([ARCH], [(b"v", (16,), 0, 0), (b"w", (8,), 0, 32)], data=bytes(64)), "'w' overlaps tensor"),
    "offset beyond the file": (handmade([ARCH], [(b"w", (8,), 0, 2**40)], data=bytes(32)), "ends at byte 1,099,"),
    "one byte short": (handmade([ARCH], [FLOATS], data=bytes(31)), "The download is probably incomplete"),
    "architecture a number": (
        handmade([text(b"general.architecture") + struct.pack("<IB", 0, 1)]), "general.architecture' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_gguf_files(tmp_path, name):
    raw, told = HANDMADE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"m.gguf.*({told})") as caught:
        open_checkpoint(path)
    assert "offset 0x" in str(caught.value) or "is missing" in str(caught.value)
    assert caught.value.exit_code == 3


# files of many GiB that take no disk: only the counts in them can make a reader allocate
SPARSE = """
import resource, sys
from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
try:
    open_checkpoint(sys.argv[1]).tokenizer_metadata()
except CheckpointError as error:
    print("refused", error)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize(
    "key",
    [
        text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 21),  # two million empty strings
        text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 30),
        text(b"a") + struct.pack("<IIQ", 9, 10, 1 << 29),
        text(b"a") + struct.pack("<IQ", 8, 1 << 33),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1 << 21),
    ],
    ids=["empty strings", "2^30 strings", "2^29 numbers", "one long string", "tokens"],
)
def test_sparse_giants_take_no_memory(tmp_path, key):
    path = tmp_path / "giant.gguf"
    path.write_bytes(handmade([ARCH, key], counts=(0, 2)))
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    limit = 1 << 30  # of address space; numpy and the interpreter take about half
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(path), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.startswith("refused broken GGUF"), done.stdout + done.stderr
    peak = int(done.stdout.split("VmHWM:")[1].split()[0])  # KiB; ru_maxrss counts what the process was forked from
    assert peak < 1 << 20
