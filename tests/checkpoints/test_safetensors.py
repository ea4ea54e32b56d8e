"""The safetensors reader against the safetensors package: what it reads, and what either refuses. Whole folders too."""

import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.checkpoints.folder import normalized
from octavo.checkpoints.safetensors import read_safetensors
from octavo.errors import CheckpointError
from octavo.quantization.format import format_named
from octavo.quantization.kv import round_to_bf16
from tests import real

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
    "num_hidden_layers": 1, "vocab_size": 32, "eos_token_id": 3,
}  # fmt: skip


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def write(path, header, data=b"", *, length=None, pad=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += pad
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def reference_accepts(path):
    try:
        safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError:
        return False
    return True


def ours_accepts(path):
    try:
        read_safetensors(path)
    except CheckpointError:
        return False
    return True


HEADERS = {
    "one": ({"a": entry()}, 24, True),
    "none": ({}, 0, True),
    "metadata": ({"__metadata__": {"format": "pt"}, "a": entry()}, 24, True),
    "metadata not text": ({"__metadata__": {"n": 1}, "a": entry()}, 24, False),
    "metadata not an object": ({"__metadata__": [], "a": entry()}, 24, False),
    "two out of order": ({"b": entry(offsets=(24, 48)), "a": entry()}, 48, True),
    "scalar": ({"a": entry(shape=(), offsets=(0, 4))}, 4, True),
    "empty tensor": ({"a": entry(shape=(0, 5), offsets=(0, 0))}, 0, True),
    "empty tensors share a place": ({"a": entry(shape=(0,), offsets=(0, 0)), "b": entry(), "c": entry(
        shape=(0,), offsets=(24, 24)), "d": entry(shape=(0,), offsets=(0, 0))}, 24, True),
    "hole": ({"a": entry(offsets=(8, 32))}, 32, False),
    "overlap": ({"a": entry(), "b": entry(offsets=(20, 44))}, 44, False),
    "twice the same bytes": ({"a": entry(), "b": entry()}, 24, False),
    "trailing bytes": ({"a": entry()}, 25, False),
    "missing bytes": ({"a": entry()}, 23, False),
    "unknown dtype": ({"a": entry("F31")}, 24, False),
    "lower-case dtype": ({"a": entry("f32")}, 24, False),
    "sub-byte": ({"a": entry("F4", (2, 4), (0, 4))}, 4, True),
    "sub-byte, ragged": ({"a": entry("F4", (3, 3), (0, 4))}, 4, False),
    "wrong size": ({"a": entry(shape=(2, 2))}, 24, False),
    "negative shape": ({"a": entry(shape=(-2, -3))}, 24, False),
    "fractional shape": ({"a": entry(shape=(2.0, 3))}, 24, False),
    "boolean shape": ({"a": entry(shape=(True, 6))}, 24, False),
    "product wraps": ({"a": entry(shape=(2**62, 2**3))}, 0, False),
    "product wraps to the size": ({"a": entry(shape=(2**63 + 3, 2))}, 24, False),
    "zero hides a wrap": ({"a": entry(shape=(2**63, 2**63, 0), offsets=(0, 0))}, 0, False),
    "end before start": ({"a": entry(offsets=(24, 0))}, 24, False),
    "huge offsets": ({"a": entry(offsets=(2**64, 2**64 + 24))}, 24, False),
    "three offsets": ({"a": entry(offsets=(0, 24, 24))}, 24, False),
    "no dtype": ({"a": {"shape": [6], "data_offsets": [0, 24]}}, 24, False),
    "not an entry": ({"a": 5}, 24, False),
    "more keys in an entry": ({"a": entry(more=1)}, 24, True),
    "an array": ([], 0, False),
    "NaN": (b'{"a": NaN}', 0, False),
    "not UTF-8": (b'{"\xff": 1}', 0, False),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0, False),
    "spaces before": (b' {"a": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}}', 24, True),
    "spaces behind": (b'{"a": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}}     ', 24, True),
    "more JSON behind": (b'{"a": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}}{}', 24, False),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_the_reference_agrees(tmp_path, name):
    header, data, accepted = HEADERS[name]
    path = write(tmp_path / "m.safetensors", header, bytes(data))
    assert (ours_accepts(path), reference_accepts(path)) == (accepted, accepted)


@pytest.mark.parametrize("length", [0, 1, 7, 10**8 + 1, 2**63, 2**64 - 1])
def test_lengths_of_headers(tmp_path, length):
    path = write(tmp_path / "m.safetensors", {"a": entry()}, bytes(24), length=length)
    assert (ours_accepts(path), reference_accepts(path)) == (False, False)


def test_a_tensor_named_twice_is_refused(tmp_path):
    # stricter than the reference, which keeps one of the two: which one is nobody's promise
    one = json.dumps(entry())
    path = write(tmp_path / "m.safetensors", f'{{"a": {one}, "a": {one}}}'.encode(), bytes(24))
    with pytest.raises(CheckpointError, match="m.safetensors.*'a' stands twice"):
        read_safetensors(path)


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    kinds=st.lists(st.sampled_from(["<f4", "<f2", "<i8", "|u1", "|b1"]), min_size=5, max_size=5),
)
def test_what_the_package_saves_reads_back(tmp_path_factory, shapes, kinds):
    path = tmp_path_factory.mktemp("s") / "m.safetensors"
    rng = np.random.default_rng(0)
    pairs = zip(shapes, kinds, strict=False)
    tensors = {f"t{i}": rng.integers(0, 2, shape).astype(kind) for i, (shape, kind) in enumerate(pairs)}
    safetensors.numpy.save_file(tensors, path)
    found = read_safetensors(path)
    raw = path.read_bytes()
    assert set(found) == set(tensors)
    for name, tensor in found.items():
        assert tensor.shape == tensors[name].shape
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == tensors[name].tobytes()


def folder_of(path, tensors, config=None, **files):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    for name, content in files.items():
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    if tensors:
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return path


def test_smollm2_in_bf16_equals_its_gguf():
    ours, source = open_checkpoint(real.smollm2_safetensors()), open_checkpoint(real.smollm2())
    keys = [
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "max_position_embeddings", "vocab_size",
        "tie_word_embeddings", "attention_bias", "eos_token_id", "sliding_window",
    ]  # fmt: skip
    assert {key: ours.config[key] for key in keys} == {key: source.config[key] for key in keys}
    assert np.float32(ours.config["rms_norm_eps"]) == np.float32(source.config["rms_norm_eps"])
    assert ours.chat_template.strip() == source.chat_template.strip() and ours.eos_token_ids == source.eos_token_ids
    assert ours.weight_format == "BF16" and "tokenizer.json" in ours.tokenizer_files
    for theirs, name in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
    ):
        tensor = source.tensors[name]
        values = format_named(tensor.format).dequantize(source.read(name), tensor.shape)
        assert ours.tensors[theirs].shape == tensor.shape
        assert np.array_equal(ours.read(theirs).view(np.uint16).reshape(tensor.shape), round_to_bf16(values))


def test_shards_through_an_index(tmp_path):
    folder = folder_of(tmp_path, None)
    a, b = np.arange(6, dtype=np.float32), np.arange(4, dtype=np.float16)
    safetensors.numpy.save_file({"a": a}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({"b": b}, folder / "model-2.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.read("a").tobytes() == a.tobytes() and checkpoint.read("b").tobytes() == b.tobytes()
    assert [file.name for file in checkpoint.files] == ["config.json", "model-1.safetensors", "model-2.safetensors"]
    for lie, told in (
        ({"a": "../model-1.safetensors"}, "not a .safetensors file of this folder"),
        ({"a": str(folder / "model-1.safetensors")}, "not a .safetensors file of this folder"),
        ({"a": "model-1.bin"}, "not a .safetensors file of this folder"),
        ({"a": 7}, "not a .safetensors file of this folder"),
        ({"a": "model-3.safetensors"}, "model-3.safetensors of tensor 'a' is missing"),
        ({"a": "model-2.safetensors", "b": "model-1.safetensors"}, "says that tensor 'a' is in model-2.safetensors"),
        (weight_map | {"c": "model-1.safetensors"}, "tensor 'c' is in model-1.safetensors, it is in no file"),
        ({}, "weight_map is missing or empty"),
    ):
        index.write_text(json.dumps({"weight_map": lie}))
        with pytest.raises(CheckpointError, match=told):
            open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    safetensors.numpy.save_file({"a": a, "b": b}, folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'a' is also in model-1.safetensors"):
        open_checkpoint(folder)
    (folder / "model-2.safetensors").unlink()
    (folder / "model-2.safetensors").symlink_to(folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(folder)


def test_pickles_are_refused(tmp_path):
    folder = folder_of(tmp_path, None)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is a pickle.*save_pretrained"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_checkpoint(folder / "pytorch_model.bin")


def test_chat_templates_of_all_three_kinds(tmp_path):
    weights = {"a": np.zeros(2, np.float32)}
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = folder_of(tmp_path, weights, **{"tokenizer_config.json": {"chat_template": named}})
    assert open_checkpoint(folder).chat_template == "D"
    folder_of(tmp_path, weights, **{"tokenizer_config.json": {"chat_template": "plain"}})
    assert open_checkpoint(folder).chat_template == "plain"
    (folder / "chat_template.jinja").write_text("file")
    assert open_checkpoint(folder).chat_template == "file"


def test_generation_config_and_digest(tmp_path):
    folder = folder_of(
        tmp_path / "m", {"a": np.zeros(2, np.float32)}, **{"generation_config.json": {"eos_token_id": [9, 4]}}
    )
    cache = tmp_path / "cache"
    checkpoint = open_checkpoint(folder)
    assert checkpoint.eos_token_ids == (9, 4)
    first = checkpoint.digest(cache)
    assert checkpoint.digest(cache) == checkpoint.digest() == first
    notes = list((cache / "digests").iterdir())
    assert len(notes) == 2
    for note in notes:  # the note is what is read the second time
        note.write_text("0" * 64)
    assert checkpoint.digest(cache) != first
    for note in notes:  # and a broken one is not believed
        note.write_text("nonsense")
    assert checkpoint.digest(cache) == first


@pytest.mark.parametrize(
    "config, key, expected",
    [
        ({}, "num_key_value_heads", 4),
        ({}, "head_dim", 16),
        ({"head_dim": 32}, "head_dim", 32),
        ({"rope_theta": 5e5}, "rope_theta", 5e5),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, "rope_theta", 7.0),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, "rope_scaling", None),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}}, "rope_scaling",
         {"rope_type": "linear", "factor": 2.0}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ({"model_type": "mistral", "sliding_window": 128}, "sliding_window", 128),
    ],
)  # fmt: skip
def test_spellings_of_configurations(tmp_path, config, key, expected):
    assert normalized(CONFIG | config, tmp_path / "config.json")[key] == expected
