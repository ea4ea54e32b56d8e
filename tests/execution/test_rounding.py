"""--quantization: what is packed, that nodes keep to it, its memory while loading, and that no cache mixes it up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.engine import startup
from octavo.errors import CheckpointError, ConfigError, DoesNotFit
from octavo.execution import verify
from octavo.execution.plan import make_plan
from tests import real, tiny

IDS = tuple((7 * i + 3) % tiny.VOCAB_SIZE for i in range(37))
GIB = 1 << 30


def config(folder: Path, **options: object) -> EngineConfig:
    places = {"cache_dir": str(folder / "cache"), "state_dir": str(folder / "state"), "threads": 2}
    return EngineConfig(**(places | {"max_model_len": 256} | options))  # type: ignore[arg-type]


def layouts(path: Path, **options: object) -> dict[str, str]:
    plan = make_plan(open_checkpoint(path), EngineConfig(**options), free=8 * GIB, threads=2)  # type: ignore[arg-type]
    return {name: place.layout.split(".")[0] for name, place in plan.layouts.places.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_plan_knows_what_is_packed(dtype: str, tied: bool, tmp_path: Path) -> None:
    path = tiny.folder(tmp_path / "model", tiny.config(tie_word_embeddings=tied), dtype=dtype)
    assert set(layouts(path).values()) == {"f32" if dtype == "float32" else "bf16"}
    assert set(layouts(path, quantization="int8").values()) == {"int8"}
    four = layouts(path, quantization="q4")
    outer = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert {name for name, layout in four.items() if layout == "int8"} == outer
    assert {layout for name, layout in four.items() if name not in outer} == {"q4_1"}


@pytest.mark.parametrize("quantization", ["int8", "q4"])
@pytest.mark.parametrize("kind", ["folder", "gguf", "ragged"])
def test_no_node_deviates(quantization: str, kind: str, tmp_path: Path) -> None:
    """Ragged: rows of 72 and 100 keep their floats, those of 64 are rounded."""
    if kind == "gguf":  # rows in another order, and one weight that is quantized already
        path = tiny.gguf_file(tmp_path / "m.gguf", quantization={"attn_v": "q5_0", "ffn_up": "f16", "attn_q": "bf16"})
    else:
        changes = {"hidden_size": 72, "intermediate_size": 100} if kind == "ragged" else {}
        path = tiny.folder(tmp_path / "model", tiny.config(**changes), dtype="bfloat16")
    report = verify.verify(path, config(tmp_path, quantization=quantization), IDS)
    assert report.first_deviation is None, report.table()


def test_each_way_has_its_own_fingerprint_and_packed_file(tmp_path: Path) -> None:
    path = tiny.folder(tmp_path / "model", dtype="bfloat16")
    found = []
    for quantization in ("auto", "int8", "q4"):
        loaded = startup.load_model(path, config(tmp_path, quantization=quantization, packed_cache="on"))
        assert loaded.packed is not None and not loaded.mapped
        found.append((loaded.executor.facts.fingerprint, loaded.packed.path))
        loaded.packed.keep(loaded.executor.region("weights"))
        line = "BF16" + ("" if quantization == "auto" else f" as {quantization}")
        assert f" {line} · context" in "\n".join(startup.summary(loaded, config(tmp_path, quantization=quantization)))
    assert len({mark for mark, _ in found}) == len({file for _, file in found}) == 3
    again = startup.load_model(path, config(tmp_path, quantization="q4", packed_cache="on"))
    assert again.mapped and again.executor.facts.fingerprint == found[2][0]


def test_what_cannot_be_rounded_is_told(tmp_path: Path) -> None:
    quantized = tiny.gguf_file(tmp_path / "m.gguf", quantization="q8_0")
    with pytest.raises(ConfigError, match="--quantization int8: .* only floats"):
        layouts(quantized, quantization="int8")
    path = tiny.folder(tmp_path / "model", dtype="bfloat16")
    with pytest.raises(DoesNotFit, match="smaller weights  --quantization int8"):
        make_plan(open_checkpoint(path), EngineConfig(), free=60 << 20, threads=2)
    weights = open_checkpoint(path).tensors["model.layers.0.mlp.up_proj.weight"]
    with weights.file.open("r+b") as file:
        file.seek(weights.offset + 200)
        file.write(b"\x80\x7f")  # infinity
    with pytest.raises(CheckpointError, match=r"up_proj.weight' cannot be rounded to int8: its values reach inf"):
        startup.load_model(path, config(tmp_path, quantization="int8"))


LOADING = """
import json, sys
from pathlib import Path
from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.execution.native import NativeExecutor
from octavo.execution.plan import make_plan

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

checkpoint = open_checkpoint(sys.argv[1])
config = EngineConfig(quantization=sys.argv[2], max_model_len=64, max_num_seqs=1, kv_cache_memory=4 << 20)
plan = make_plan(checkpoint, config, free=8 << 30, threads=2)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = resident("VmRSS")
NativeExecutor(plan.layouts, plan.vocab, "").load(checkpoint, plan.sources)
largest = max(tensor.nbytes for tensor in checkpoint.tensors.values())
print(json.dumps([resident("VmHWM") - before, plan.regions.weights, largest]))
"""


@pytest.mark.parametrize("quantization", ["int8", "q4"])
def test_loading_takes_the_packed_weights_and_less_than_a_tensor(quantization: str) -> None:
    """Peak of resident memory over what was there before, all other regions included: streamed, never two copies."""
    path = real.smollm2_safetensors()
    made = subprocess.run(
        [sys.executable, "-c", LOADING, str(path), quantization], check=True, capture_output=True, text=True
    )
    peak, weights, largest = json.loads(made.stdout)
    assert weights < peak, "the weights were not loaded"
    assert peak <= weights + largest, f"{peak - weights:,} bytes beside the weights; a tensor has {largest:,}"
