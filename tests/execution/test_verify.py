"""verify: every variant passes on the tiny model, and an injected error is found at its node."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.execution import verify
from octavo.execution.check import BOUND, EXACT, ORACLE
from octavo.kernels.library import runnable_variants
from tests import real, tiny

IDS = tuple((7 * i + 3) % tiny.VOCAB_SIZE for i in range(37))
MIXED = {
    "attn_q": "q8_0", "attn_k": "q4_1", "attn_v": "q4_0", "attn_output": "f16", "ffn_gate": "q5_0", "ffn_up": "q8_0",
    "ffn_down": "q4_0", "token_embd": "f16", "output": "bf16",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: its threads wait actively for each other, which costs most beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(folder: Path, **changes: object) -> EngineConfig:
    settings = {"threads": 2, "cache_dir": str(folder), "state_dir": str(folder), **changes}
    return EngineConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("isa", runnable_variants())
@pytest.mark.parametrize("kv", ["bf16", "float32", "fp16", "int8"])
def test_tiny_models_pass(isa: str, kv: str, tmp_path: Path) -> None:
    window = tiny.config("mistral", sliding_window=17, num_key_value_heads=1)
    biased = tiny.config("qwen2", num_attention_heads=6, hidden_size=96, tie_word_embeddings=True)
    models = [
        tiny.gguf_file(tmp_path / "q4_1.gguf", quantization="q4_1"),
        tiny.gguf_file(tmp_path / "mixed.gguf", quantization=MIXED),
        tiny.folder(tmp_path / "window", window, dtype="bfloat16"),
        tiny.folder(tmp_path / "biased", biased),
    ]
    for path in models:
        for ids in (IDS, IDS[:2]):
            report = verify.verify(path, config(tmp_path, isa=isa, kv_cache_dtype=kv), ids)
            assert report.first_deviation is None
            assert report.isa == isa and report.kv_dtype == kv and report.rows == len(ids)
            assert {check.op for check in report.checks} >= {
                "embedding", "rms_norm", "linear", "rope", "kv_write", "attention", "add", "silu_mul", "sample"
            }  # fmt: skip
            assert len(report.kl) == len(ids) and max(report.kl) < 0.05
            assert "no node deviates" in report.table()


def test_float_weights_on_a_float_cache_are_as_good_as_float32(tmp_path: Path) -> None:
    report = verify.verify(tiny.folder(tmp_path / "model"), config(tmp_path, kv_cache_dtype="float32"), IDS)
    assert max(distance.relative_error for distance in report.distances) < 1e-5
    assert max(report.kl) < 1e-9 and report.greedy_agreement == 1
    assert {distance.region for distance in report.distances} == {"embed", "layer 0", "layer 1", "head"}


Injection = Callable[[verify.Subject], None]


def weight_byte(name: str, at: int) -> Injection:
    """One bit of one byte of a packed weight is turned over."""

    def inject(subject: verify.Subject) -> None:
        subject.executor.region("weights")[subject.plan.layouts.places[name].offset + at] ^= 0x10

    return inject


def table_value(name: str, index: int, factor: float) -> Injection:
    """One float of a norm's weight or a rope table is changed."""

    def inject(subject: verify.Subject) -> None:
        at = subject.plan.layouts.tables[name] + 4 * index
        subject.executor.region("tables")[at : at + 4].view("f4")[0] *= factor

    return inject


ATTENTION, MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
INJECTIONS: dict[str, tuple[Injection, tuple[str, str, str, str]]] = {
    # what is changed -> region, op, weight and contract of the first deviation
    "q": (weight_byte(f"{ATTENTION}.q_proj.weight", 700), ("layer 1", "linear", f"{ATTENTION}.q_proj.weight", ORACLE)),
    "v": (weight_byte(f"{ATTENTION}.v_proj.weight", 3), ("layer 1", "linear", f"{ATTENTION}.v_proj.weight", ORACLE)),
    "o": (weight_byte(f"{ATTENTION}.o_proj.weight", 100), ("layer 1", "linear", f"{ATTENTION}.o_proj.weight", ORACLE)),
    "up": (weight_byte(f"{MLP}.up_proj.weight", 1300), ("layer 1", "linear", f"{MLP}.up_proj.weight", ORACLE)),
    "down": (weight_byte(f"{MLP}.down_proj.weight", 0), ("layer 1", "linear", f"{MLP}.down_proj.weight", ORACLE)),
    "head": (weight_byte("lm_head.weight", 640), ("head", "linear", "lm_head.weight", ORACLE)),
    "norm": (
        table_value("model.layers.1.post_attention_layernorm.weight", 40, 1.0001),
        ("layer 1", "rms_norm", "model.layers.1.post_attention_layernorm.weight", BOUND),
    ),
    "last norm": (table_value("model.norm.weight", 63, 1.00001), ("head", "rms_norm", "model.norm.weight", BOUND)),
}


@pytest.mark.parametrize("what", INJECTIONS)
def test_an_injected_error_is_found_at_its_node(what: str, tmp_path: Path) -> None:
    inject, (region, op, weight, against) = INJECTIONS[what]
    subject = verify.load(tiny.gguf_file(tmp_path / "model.gguf", quantization="q4_1"), config(tmp_path), IDS)
    inject(subject)
    report = verify.examine(subject)
    found = report.first_deviation
    assert found is not None and not report.passed
    assert (found.region, found.op, found.weights, found.against) == (region, op, (weight,), against)
    assert {check.weights for check in report.checks if not check.passed} == {(weight,)}, "other nodes are clean"
    assert weight in report.table() and "DEVIATES" in report.table()


def test_a_wrong_rope_table_is_found_where_it_turns(tmp_path: Path) -> None:
    subject = verify.load(tiny.gguf_file(tmp_path / "model.gguf", quantization="q8_0"), config(tmp_path), IDS)
    name = next(name for name in subject.plan.layouts.lowered.tables if "cos" in name)
    table_value(name, 8 * 5 + 2, 1.0001)(subject)  # position 5
    failed = {check.op for check in verify.examine(subject).checks if not check.passed}
    assert failed == {"rope"}


def test_wrong_keys_in_the_pages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What kv_write leaves is compared bit by bit: one that rounds differently fails."""
    from octavo.execution.kv_pages import KvPages

    right = KvPages.rounded
    monkeypatch.setattr(KvPages, "rounded", lambda self, values: right(self, values * 1.01))
    subject = verify.load(tiny.gguf_file(tmp_path / "model.gguf", quantization="q8_0"), config(tmp_path), IDS)
    failed = {(check.op, check.against) for check in verify.examine(subject).checks if not check.passed}
    assert ("kv_write", EXACT) in failed


def test_bad_prompts_are_refused(tmp_path: Path) -> None:
    path = tiny.gguf_file(tmp_path / "model.gguf")
    for ids, word in (([3], "2 to 512"), ([3, tiny.VOCAB_SIZE], "vocabulary"), ([5] * 600, "--max-num-batched-tokens")):
        with pytest.raises(ConfigError, match=word):
            verify.verify(path, config(tmp_path), ids)


def test_smollm2(tmp_path: Path) -> None:
    """The default model on four ids: every node of 30 layers."""
    report = verify.verify(real.smollm2(), config(tmp_path), (504, 5182, 28, 253))
    assert report.first_deviation is None and len(report.checks) > 600
    assert max(report.kl) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("isa", runnable_variants())
def test_smollm2_on_every_variant(isa: str, tmp_path: Path) -> None:
    for kv in ("bf16", "float32", "fp16", "int8"):
        assert verify.verify(real.smollm2(), config(tmp_path, isa=isa, kv_cache_dtype=kv)).first_deviation is None


@pytest.mark.slow
def test_qwen_half_b(tmp_path: Path) -> None:
    """Q4_K_M: int8 panels of two kinds, biases, 14 heads on 2."""
    assert verify.verify(real.qwen_half_b(), config(tmp_path)).first_deviation is None
