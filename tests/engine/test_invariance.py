"""Promise one on the native executor, bit for bit: ids and logprobs depend on the request alone.

Not on the batch, chunking, preemption, the prefix cache, the block size, run-ahead or the number of threads. The tiny
model runs every variant of the instruction set; a hybrid one (windows beside full attention), mixtures of experts and
ones of every weight format the best, with each dtype of the cache; SmolLM2, Gemma 3 270M and Qwen2.5-Coder-0.5B the
best one at length, SmolLM2 the others shortly.
"""

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.kernels import library
from octavo.quantization.format import FORMATS, GGML_TYPES, format_named
from octavo.request import Request
from tests import real, tiny
from tests.engine.native_world import Answers, Model, alone, assert_equal, drive, requests

VARIANTS = library.runnable_variants()


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return tiny.gguf_file(folder / "tiny.gguf", tiny.config(num_attention_heads=6, num_key_value_heads=2))


class World:
    """A model, its requests, and their answers alone: the truth that every variation must give."""

    def __init__(self, model: Model, wanted: list[Request]) -> None:
        self.model = model
        self.wanted = wanted
        self.truth: Answers = alone(model, wanted, run_ahead=1, prefix_caching=False)


@pytest.fixture(scope="module")
def hybrid_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 with random weights: five layers of seven slide by 19, two see everything; norms before and after."""
    from tests.models import families  # imports torch and transformers

    return families.gguf_file(tmp_path_factory.mktemp("hybrid") / "hybrid.gguf", families.CASES["gemma3"])


@pytest.fixture(scope="module")
def moe_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-MoE with random weights: 9 experts of which a row takes 4, in Q8_0."""
    from tests.models import families  # imports torch and transformers

    path = tmp_path_factory.mktemp("moe") / "moe.gguf"
    return families.gguf_file(path, families.CASES["qwen3_moe"], quantization="q8_0")


@pytest.fixture(scope="module")
def shared_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-MoE with random weights: an expert that every row takes beside 9 others, in Q8_0."""
    from tests.models import families

    path = tmp_path_factory.mktemp("shared") / "shared.gguf"
    return families.gguf_file(path, families.CASES["qwen2_moe"], quantization="q8_0")


@pytest.fixture(scope="module")
def oss_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpt-oss with random weights: sinks, windows, experts in MXFP4."""
    from tests.models import families

    stacks = dict.fromkeys(("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"), "mxfp4")
    path = tmp_path_factory.mktemp("oss") / "oss.gguf"
    return families.gguf_file(path, families.CASES["gpt_oss"], quantization={"": "q8_0", **stacks})


@pytest.fixture(scope="module")
def formats_gguf(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Models that have every weight format between them, another one for each role: first format -> file."""
    from tests.execution import test_formats as formats  # imports torch

    folder, config = tmp_path_factory.mktemp("formats"), tiny.config(**formats.SHAPE)
    firsts = range(0, len(formats.QUANTIZED), len(formats.STEMS))
    return {
        i: tiny.gguf_file(folder / f"{i}.gguf", config, quantization=formats.mixture(first))
        for i, first in enumerate(firsts)
    }


@pytest.fixture(scope="module")
def floats_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """float32, float16 and bf16 side by side, also inside of fused phases."""
    kinds = {"attn_q": "f16", "attn_k": "bf16", "ffn_gate": "f16", "ffn_down": "bf16", "token_embd": "bf16"}
    return tiny.gguf_file(tmp_path_factory.mktemp("floats") / "floats.gguf", tiny.config(), quantization=kinds)


@pytest.fixture(scope="module")
def rounded_gguf(floats_gguf: Path) -> Path:
    return floats_gguf


BEST = VARIANTS[0]
WORLDS = [
    *((isa, "bf16", "tiny") for isa in VARIANTS),
    *((BEST, kv_dtype, "tiny") for kv_dtype in ("float32", "fp16", "int8")),
    *((BEST, kv_dtype, "hybrid") for kv_dtype in ("bf16", "float32", "fp16", "int8")),
    (BEST, "bf16", "moe"), (BEST, "bf16", "shared"), (BEST, "int8", "oss"),
    *((BEST, kv_dtype, f"formats-{i}") for i, kv_dtype in enumerate(("bf16", "int8", "fp16"))),
    (BEST, "bf16", "floats"),
    *((BEST, "bf16", f"rounded-{to}") for to in ("int8", "q4")),  # while they are loaded
]  # fmt: skip


@pytest.fixture(scope="module", params=WORLDS, ids="-".join)
def world(request: pytest.FixtureRequest) -> World:
    isa, kv_dtype, name = request.param
    kind, _, detail = name.partition("-")
    path = request.getfixturevalue(f"{kind}_gguf")
    rounded = detail if kind == "rounded" else "auto"
    path = path[int(detail)] if kind == "formats" else path
    model = Model(path, isa=isa, kv_dtype=kv_dtype, kv_bytes=8 << 20, quantization=rounded)
    return World(model, requests(tiny.VOCAB_SIZE, 15, longest=200))


@cache
def smollm2() -> World:
    model = Model(real.model("smollm2-135m-instruct"), kv_bytes=512 << 20, max_model_len=2048)
    return World(model, requests(49152, 10, longest=600, answer=10))


@pytest.mark.parametrize("seed", range(3))
def test_batched_and_staggered(world: World, seed: int) -> None:
    order = random.Random(seed)
    mixed = order.sample(world.wanted, len(world.wanted))
    assert_equal(drive(world.model.engine(), mixed, stagger=order), world.truth)


@pytest.mark.parametrize("tokens", [32, 33, 47, 128])
def test_chunked(world: World, tokens: int) -> None:
    found = drive(world.model.engine(max_batched_tokens=tokens, prefix_caching=False), world.wanted)
    assert_equal(found, world.truth)


def test_chunked_by_time(world: World) -> None:
    found = drive(world.model.engine(step_seconds=1e-5), world.wanted)
    assert_equal(found, world.truth)


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_block_size_and_prefix_hits(world: World, block_size: int) -> None:
    """The second round finds its beginnings in the cache; the third after a reset does not."""
    core = world.model.engine(block_size=block_size)
    for turn in range(3):
        again = [replace(request, request_id=f"{request.request_id}t{turn}") for request in world.wanted]
        found = drive(core, again)
        assert_equal({(name.split("t")[0], choice): answer for (name, choice), answer in found.items()}, world.truth)
        if turn == 1:
            assert core.stats().hit_tokens > 0
            core.reset_prefix_cache()


@pytest.mark.parametrize("ahead", [1, 2, 8])
def test_run_ahead(world: World, ahead: int) -> None:
    assert_equal(drive(world.model.engine(run_ahead=ahead), world.wanted), world.truth)


@pytest.mark.parametrize(("kv_dtype", "count"), [("bf16", 15), ("int8", 30)])
def test_preempted_and_evicted(tiny_gguf: Path, kv_dtype: str, count: int) -> None:
    """So few blocks (4,096 tokens of bf16, 6,544 of int8) that requests are preempted and prefixes evicted often."""
    wanted = requests(tiny.VOCAB_SIZE, count, longest=300, shortest=200, answer=150)
    small = Model(tiny_gguf, kv_dtype=kv_dtype, kv_bytes=1 << 20, max_seqs=count)
    truth = World(Model(tiny_gguf, kv_dtype=kv_dtype, kv_bytes=16 << 20), wanted).truth
    core = small.engine()
    assert_equal(drive(core, wanted), truth)
    assert core.stats().preemptions > 0


def test_preempted_and_evicted_with_windows(hybrid_gguf: Path) -> None:
    wanted = requests(tiny.VOCAB_SIZE, 12, longest=300, shortest=200, answer=100)
    truth = World(Model(hybrid_gguf, kv_bytes=32 << 20), wanted).truth
    core = Model(hybrid_gguf, kv_bytes=2 << 20, max_seqs=12).engine()
    assert_equal(drive(core, wanted), truth)
    assert core.stats().preemptions > 0


@pytest.mark.parametrize("threads", [1, 3])
def test_threads(world: World, threads: int) -> None:
    model = replace(world.model, threads=threads)
    assert_equal(drive(model.engine(), world.wanted), world.truth)


def test_the_models_of_formats_have_every_format(formats_gguf: dict[int, Path]) -> None:
    found = {
        tensor.format
        for path in formats_gguf.values()
        for tensor in open_checkpoint(path).tensors.values()
        if len(tensor.shape) == 2
    }
    assert found == {name for name in FORMATS if format_named(name).split is not None and name in GGML_TYPES.values()}
    assert len(formats_gguf) == sum(name.startswith("formats-") for _, _, name in WORLDS)


def test_smollm2() -> None:
    """The real model: batched, chunked, warm cache, run-ahead."""
    world = smollm2()
    core = world.model.engine(run_ahead=8)
    assert_equal(drive(core, world.wanted, stagger=random.Random(1)), world.truth)
    again = [replace(request, request_id=request.request_id + "w") for request in world.wanted]
    found = drive(core, again)
    assert_equal({(name[:-1], choice): answer for (name, choice), answer in found.items()}, world.truth)
    assert_equal(drive(world.model.engine(max_batched_tokens=45, block_size=64), world.wanted), world.truth)


@pytest.mark.slow
@pytest.mark.parametrize("kv_dtype", ["bf16", "float32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("name", "vocab", "longest"), [("gemma-3-270m", 262144, 700), ("qwen2.5-coder-0.5b-instruct", 151936, 400)]
)
def test_other_real_models(name: str, vocab: int, longest: int, kv_dtype: str) -> None:
    """The hybrid one with prompts of up to 700 ids against windows of 512, and one with biases and 7 heads on a key."""
    settings = {"kv_dtype": kv_dtype, "kv_bytes": 256 << 20, "max_model_len": 1024}
    model = Model(real.model(name), **settings)
    world = World(model, requests(vocab, 8, longest=longest, answer=10))
    core = model.engine(run_ahead=8)
    assert_equal(drive(core, world.wanted, stagger=random.Random(1)), world.truth)
    again = [replace(request, request_id=request.request_id + "w") for request in world.wanted]
    found = drive(core, again)
    assert_equal({(name[:-1], choice): answer for (name, choice), answer in found.items()}, world.truth)
    assert core.stats().hit_tokens > 0
    assert_equal(drive(model.engine(max_batched_tokens=45, block_size=64), world.wanted), world.truth)
    one = Model(real.model(name), threads=1, **settings)
    assert_equal(drive(one.engine(max_batched_tokens=77), world.wanted), world.truth)


@pytest.mark.parametrize("threads", [1, 3])
def test_smollm2_threads(threads: int) -> None:
    world = smollm2()
    model = Model(world.model.path, threads=threads, kv_bytes=512 << 20, max_model_len=2048)
    assert_equal(
        drive(model.engine(), world.wanted[:4]),
        {k: v for k, v in world.truth.items() if k[0] in ("r0", "r1", "r2", "r3")},
    )


@pytest.mark.parametrize("isa", VARIANTS[1:])
def test_smollm2_other_variants(isa: str) -> None:
    """64 tokens on every variant: alone on one thread equals batched on two."""
    path = real.model("smollm2-135m-instruct")
    wanted = requests(49152, 2, longest=40, answer=64)
    one = Model(path, isa=isa, threads=1, kv_bytes=64 << 20, max_model_len=512)
    two = Model(path, isa=isa, threads=2, kv_bytes=64 << 20, max_model_len=512)
    assert_equal(drive(two.engine(), wanted), alone(one, wanted))
