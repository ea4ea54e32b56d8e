"""Mixtures of experts beside what every family is tested for: ties, idle and crowded experts, the ways in which files
hold them, and files that hold them wrongly."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from octavo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from octavo.config import EngineConfig
from octavo.errors import CheckpointError, UnsupportedModel
from octavo.execution import verify
from octavo.execution.reference import Rows
from octavo.models.binding import bind
from octavo.models.registry import build
from octavo.models.source import WeightSource, read_floats
from octavo.program.trace import trace, weights_of
from tests import tiny
from tests.models import families
from tests.models.test_families import loaded
from tests.models.test_logits import BOUND, logits_of, theirs

MIXTRAL, GPT_OSS, SHARED = (families.CASES[name] for name in ("mixtral", "gpt_oss", "qwen2_moe"))
PROMPTS = [
    np.random.default_rng(seed).integers(0, tiny.VOCAB_SIZE, count).tolist() for seed, count in enumerate((7, 90))
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def edited(path: Path, case: families.Case, edit: Callable[[Any], None]) -> Path:
    """A folder whose layers `edit` has changed, each given its `mlp`."""
    model = AutoModelForCausalLM.from_pretrained(families.folder(path, case), dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            edit(layer.mlp)
    model.save_pretrained(path)
    return path


def same_as_transformers(path: Path) -> None:
    wanted = logits_of(theirs(path, "eager"), PROMPTS)
    model, _ = loaded(path, 90)
    with torch.no_grad():
        found = [model.logits([Rows(slot, 0, ids)]) for slot, ids in enumerate(PROMPTS)]
    for ours, want in zip(found, wanted, strict=True):
        assert (ours - want).abs().max().item() <= BOUND


def natively(path: Path, folder: Path, **options: Any) -> verify.Report:
    config = EngineConfig(threads=2, cache_dir=str(folder), state_dir=str(folder), kv_cache_dtype="float32", **options)
    report = verify.verify(path, config, tuple(PROMPTS[1]))
    assert report.first_deviation is None, report.table()
    return report


def test_equal_logits(tmp_path: Path) -> None:
    """Experts 0 to 3 are one: whoever of them is chosen, the result is the same; the fifth competes with them."""

    def edit(mlp: Any) -> None:
        mlp.gate.weight[1:4] = mlp.gate.weight[0]
        mlp.experts.gate_up_proj[1:4] = mlp.experts.gate_up_proj[0]
        mlp.experts.down_proj[1:4] = mlp.experts.down_proj[0]

    path = edited(tmp_path / "model", MIXTRAL, edit)
    same_as_transformers(path)
    natively(path, tmp_path)


def test_an_expert_of_every_token_and_one_of_none(tmp_path: Path) -> None:
    def edit(mlp: Any) -> None:
        mlp.router.bias[2], mlp.router.bias[4] = 60.0, -60.0

    path = edited(tmp_path / "model", GPT_OSS, edit)
    same_as_transformers(path)
    natively(path, tmp_path)


def bound(checkpoint: Checkpoint) -> dict[str, WeightSource]:
    model = build(checkpoint, positions=64)
    return bind(checkpoint, model, weights_of(trace(model.functions)))


def packed_folder(path: Path) -> Path:
    """gpt-oss as it is published: experts in MXFP4, nibbles and exponents apart."""
    case = replace(GPT_OSS, changes={**GPT_OSS.changes, "intermediate_size": 64})
    tensors = load_file(families.folder(path, case) / "model.safetensors")
    random = torch.Generator().manual_seed(4)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, k, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(
            0, 256, (experts, rows, k // 32, 16), generator=random, dtype=torch.uint8
        )
        tensors[f"{name}_scales"] = torch.randint(
            118, 125, (experts, rows, k // 32), generator=random, dtype=torch.uint8
        )
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_mxfp4_in_folders(tmp_path: Path) -> None:
    """Numbers are those that transformers takes the nibbles apart to, and so are the logits."""
    path = packed_folder(tmp_path / "model")
    checkpoint, tensors = open_checkpoint(path), load_file(path / "model.safetensors")
    sources, dense = bound(checkpoint), {}
    for name in ("gate_up_proj", "down_proj"):
        for i in range(3):
            stem = f"model.layers.{i}.mlp.experts.{name}"
            blocks, scales = tensors.pop(f"{stem}_blocks"), tensors.pop(f"{stem}_scales")
            dense[stem] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
            rows = dense[stem].transpose(1, 2).numpy()
            parts = {"gate_proj": rows[:, ::2], "up_proj": rows[:, 1::2]} if "gate" in name else {"down_proj": rows}
            for layer, wanted in parts.items():
                source = sources[f"model.layers.{i}.mlp.experts.{layer}.weight"]
                assert source.format == "mxfp4"
                np.testing.assert_array_equal(read_floats(checkpoint, source), wanted)
    natively(path, tmp_path)
    found, _ = loaded(path, 90)
    with torch.no_grad():
        logits = found.logits([Rows(0, 0, PROMPTS[1])])
    save_file({**tensors, **dense}, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    del config["quantization_config"]
    (path / "config.json").write_text(json.dumps(config))
    wanted = logits_of(theirs(path, "eager"), PROMPTS[1:])[0]
    assert (logits - wanted).abs().max().item() <= BOUND


def rewritten(path: Path, target: Path, change: Callable[[str, Any], list[tuple[str, Any]]]) -> Path:
    """A GGUF file of float32 with other tensors: change(name, values) -> those in its place."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        for name, values in change(tensor.name, np.array(tensor.data)):
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def each_apart(name: str, values: Any) -> list[tuple[str, Any]]:
    if "_exps." not in name:
        return [(name, values)]
    stem = name.removesuffix("_exps.weight")
    return [(f"{stem}.{expert}.weight", np.ascontiguousarray(each)) for expert, each in enumerate(values)]


@pytest.fixture(scope="module")
def mixtral_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.gguf_file(tmp_path_factory.mktemp("mixtral") / "m.gguf", MIXTRAL)


def test_mixtral_of_2023_has_a_tensor_for_each_expert(mixtral_gguf: Path, tmp_path: Path) -> None:
    old = rewritten(mixtral_gguf, tmp_path / "old.gguf", each_apart)
    checkpoints = [open_checkpoint(path) for path in (mixtral_gguf, old)]
    new, apart = (bound(checkpoint) for checkpoint in checkpoints)
    assert new.keys() == apart.keys()
    for name, source in new.items():
        np.testing.assert_array_equal(read_floats(checkpoints[1], apart[name]), read_floats(checkpoints[0], source))
    natively(old, tmp_path)


@pytest.mark.parametrize(("quantization", "case"), [("int8", MIXTRAL), ("q4", MIXTRAL), ("int8", SHARED)])
def test_experts_are_rounded_and_what_weighs_them_is_not(
    quantization: str, case: families.Case, tmp_path: Path
) -> None:
    path = families.folder(tmp_path / "model", case)
    natively(path, tmp_path, quantization=quantization)
    subject = verify.load(path, EngineConfig(quantization=quantization, cache_dir=str(tmp_path)), PROMPTS[0])
    formats = {name: weight.format for name, weight in subject.plan.layouts.lowered.weights.items()}
    experts = {formats[name] for name in formats if ".experts." in name or ".shared_expert." in name}
    assert experts == {"int8" if quantization == "int8" else "q4_1"}
    assert {formats[name] for name in formats if name.endswith((".gate.weight", "_gate.weight"))} == {"f32"}


def test_a_shared_expert_takes_the_quantized_rows_of_the_others(tmp_path: Path) -> None:
    """Router and gate stay one product on floats beside it; no weight is widened to floats."""
    path = families.gguf_file(tmp_path / "model.gguf", SHARED, quantization="q8_0")
    subject = verify.load(path, EngineConfig(cache_dir=str(tmp_path)), PROMPTS[0])
    lowered = subject.plan.layouts.lowered
    layouts = {weight.layout for name, weight in lowered.weights.items() if ".shared_expert." in name}
    assert layouts == {"q8_0.p32.k4.1"}
    nodes = [node for node in lowered.programs["body"].nodes if node.region == "layer 1"]
    read = [[value.rpartition(".mlp.")[2] for value in node.origin.weights if ".mlp." in value] for node in nodes]
    stems = ["shared_expert_gate.weight", "gate.weight"]
    assert stems in read


@pytest.mark.parametrize("key", ["moe_intermediate_size", "shared_expert_intermediate_size"])
def test_sizes_of_experts_are_the_tensors(key: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(families.folder(tmp_path / "model", SHARED))
    with pytest.raises(CheckpointError, match="has the shape .* the configuration asks for"):
        bound(replace(checkpoint, config={**checkpoint.config, key: 32}))


def with_tensors(checkpoint: Checkpoint, **changed: Any) -> Checkpoint:
    """A checkpoint whose tensors (parts of names, dots as __) have other shapes or formats, or are gone."""
    tensors = dict(checkpoint.tensors)
    for part, change in changed.items():
        name = next(name for name in tensors if part.replace("__", ".") in name)
        if change is None:
            del tensors[name]
        else:
            tensors[name] = replace(tensors[name], **change)
    return replace(checkpoint, tensors=tensors)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"blk__1__ffn_up_exps": {"shape": (4, 96, 96)}}, CheckpointError,
         r"blk.1.ffn_up_exps.weight has the shape \(4, 96, 96\), the configuration asks for \(5, 96, 96\)"),
        ({"blk__0__ffn_down_exps": {"shape": (5, 96)}}, CheckpointError, r"ffn_down_exps.weight has the shape \(5, 9"),
        ({"blk__0__ffn_down_exps": {"shape": (480, 96)}}, CheckpointError, r"ffn_down_exps.weight has the shape"),
        ({"blk__0__ffn_gate_exps": None}, CheckpointError, "1 missing: blk.0.ffn_gate_exps.weight"),
        ({"blk__2__ffn_gate_inp": None}, CheckpointError, "1 missing: model.layers.2.block_sparse_moe.gate.weight"),
        ({"blk__2__ffn_gate_inp": {"shape": (6, 96)}}, CheckpointError, r"ffn_gate_inp.weight has the shape \(6, 96\)"),
    ],
)  # fmt: skip
def test_stacks_that_do_not_fit_are_one_error(
    changes: dict[str, Any], error: type[Exception], words: str, mixtral_gguf: Path
) -> None:
    with pytest.raises(error, match=words):
        bound(with_tensors(open_checkpoint(mixtral_gguf), **changes))


def test_experts_of_a_layer_are_all_there_and_of_one_format(mixtral_gguf: Path, tmp_path: Path) -> None:
    old = open_checkpoint(rewritten(mixtral_gguf, tmp_path / "old.gguf", each_apart))
    with pytest.raises(CheckpointError, match="1 missing: blk.0.ffn_gate.3.weight"):
        bound(with_tensors(old, blk__0__ffn_gate__3=None))
    with pytest.raises(CheckpointError, match=r"blk.0.ffn_up.2.weight has the shape \(96, 64\)"):
        bound(with_tensors(old, blk__0__ffn_up__2={"shape": (96, 64)}))
    with pytest.raises(
        UnsupportedModel, match="blk.0.ffn_up.2.weight is F16 and blk.0.ffn_up.0.weight F32; the 5 experts"
    ):
        bound(with_tensors(old, blk__0__ffn_up__2={"format": "f16"}))


def test_mxfp4_of_wrong_shapes_and_types(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(packed_folder(tmp_path / "model"))
    for part, change, words in (
        ("layers__1__mlp__experts__gate_up_proj_scales", {"shape": (6, 128, 3)}, r"gate_up_proj_scales has the shape"),
        ("layers__0__mlp__experts__down_proj_blocks", {"shape": (6, 64, 64)}, r"down_proj_blocks has the shape"),
        ("layers__0__mlp__experts__down_proj_scales", None, "1 missing: .*down_proj_scales"),
        ("layers__0__mlp__experts__gate_up_proj_bias", {"shape": (6, 64)}, r"gate_up_proj_bias has the shape"),
    ):
        with pytest.raises(CheckpointError, match=words):
            bound(with_tensors(checkpoint, **{part: change}))
    with pytest.raises(UnsupportedModel, match="down_proj_scales is F32 and .*down_proj_blocks U8"):
        bound(with_tensors(checkpoint, layers__0__mlp__experts__down_proj_scales={"format": "f32"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_experts_per_tok": 6}, "num_experts_per_tok = 6 must be at most num_experts = 5"),
        ({"num_experts": 0}, "num_experts = 0 must be a whole number from 1"),
        ({"num_experts": 10**6}, "num_experts = 1000000 must be a whole number from 1 to 4,096"),
        (
            {"num_experts_per_tok": 65, "num_experts": 128},
            "num_experts_per_tok = 65 must be a whole number from 1 to 64",
        ),
    ],
)
def test_counts_that_are_impossible_name_their_key(changes: dict[str, int], words: str, mixtral_gguf: Path) -> None:
    checkpoint = open_checkpoint(mixtral_gguf)
    with pytest.raises(CheckpointError, match=words):
        build(replace(checkpoint, config={**checkpoint.config, **changes}), positions=64)


def test_an_architecture_without_experts_refuses_them(tmp_path: Path) -> None:
    def metadata(writer: gguf.GGUFWriter, config: Any) -> None:
        writer.add_expert_count(8)

    path = families.gguf_file(tmp_path / "m.gguf", replace(families.CASES["qwen3"], metadata=metadata))
    with pytest.raises(UnsupportedModel, match=r"qwen3 with experts is not built \(key qwen3.expert_count\)"):
        open_checkpoint(path)
