"""The plan is what is allocated, to the byte; what does not fit is refused, an automatic context is reduced first."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from octavo.checkpoints.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.errors import ConfigError, DoesNotFit
from octavo.execution.native import NativeExecutor, Regions, page_ops, thread_scratch
from octavo.execution.plan import KV_SHARE, SHARE, MemoryPlan, make_plan
from octavo.execution.step import PAGE_TOKENS
from octavo.quantization.panels import layout_named, packed_bytes
from tests import real, tiny

GIB = 1 << 30


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.gguf_file(tmp_path_factory.mktemp("plan") / "tiny.gguf", quantization="q4_1")


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can take 65,536 positions."""
    config = tiny.config(max_position_embeddings=65536)
    return tiny.folder(tmp_path_factory.mktemp("plan") / "long", config)


def plan_of(path: Path, *, free: int = 8 * GIB, threads: int = 2, **options: object) -> MemoryPlan:
    return make_plan(open_checkpoint(path), EngineConfig(**options), free=free, threads=threads)  # type: ignore[arg-type]


OPTIONS: list[dict[str, object]] = [
    {}, {"max_num_seqs": 1, "max_model_len": 16}, {"kv_cache_dtype": "float32", "max_num_batched_tokens": 33},
    {"kv_cache_memory": 3 << 20, "max_num_seqs": 200}, {"gpu_memory_utilization": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_regions_equal_the_allocators_counters(options: dict[str, object], threads: int, path: Path) -> None:
    free = 2 * GIB if "gpu_memory_utilization" not in options else GIB
    plan = plan_of(path, free=free, threads=threads, **options)
    executor = NativeExecutor(plan.layouts, plan.vocab, "")
    planned = {each.name: getattr(plan.regions, each.name) for each in fields(Regions)}
    assert executor.memory() == planned
    checkpoint = open_checkpoint(path)
    executor.load(checkpoint, plan.sources)
    assert executor.memory() == planned, "loading takes nothing that the plan does not say"
    assert plan.total == sum(planned.values()) + plan.runtime <= plan.allowed
    assert plan.regions.scratch == threads * thread_scratch(plan.layouts.lowered)


def test_smollm2_to_the_byte() -> None:
    """Weights are the packed panels, each at a page; KV is pages of 16 tokens for 30 layers of 3 heads of 64."""
    plan = plan_of(real.smollm2(), max_model_len=2048, kv_cache_memory=256 << 20)
    page = 30 * 3 * 2 * 16 * 64 * 2
    assert plan.page_bytes == page and plan.regions.kv == page * (1 + (256 << 20) // page)
    assert plan.kv_tokens == (256 << 20) // page * 16
    small = plan_of(real.smollm2(), max_model_len=2048, kv_cache_memory=256 << 20, kv_cache_dtype="int8")
    assert small.page_bytes == 30 * 3 * 2 * 16 * (64 + 4), "a byte a value, and a float32 scale per token and head"
    places = plan.layouts.places.values()
    for place in places:
        assert place.nbytes == packed_bytes(layout_named(place.layout), place.n, place.k)
        assert place.offset % 4096 == 0
    ends = sorted((place.offset, place.offset + place.nbytes) for place in places)
    assert all(end <= begin for (_, end), (begin, _) in zip(ends, ends[1:], strict=False))
    assert plan.regions.weights == max(end for _, end in ends) // -4096 * -4096 + 8192
    executor = NativeExecutor(plan.layouts, plan.vocab, "")
    assert executor.memory() == {each.name: getattr(plan.regions, each.name) for each in fields(Regions)}


def test_the_pool_is_as_asked_or_follows_from_what_is_expected(path: Path) -> None:
    asked = plan_of(path, kv_cache_memory=5 << 20)
    assert asked.layouts.bounds.pages == 1 + (5 << 20) // asked.page_bytes
    automatic = plan_of(path, max_num_seqs=3)
    assert automatic.kv_tokens == 3 * 512 and automatic.context == automatic.model_context == 512
    share = plan_of(path, free=GIB, gpu_memory_utilization=0.5)
    assert 0 <= share.allowed - share.total < share.page_bytes and share.allowed == GIB // 2
    crowded = plan_of(path, free=512 << 20, max_num_seqs=4096, max_model_len=128)
    assert crowded.regions.kv <= int(crowded.free * KV_SHARE) + crowded.page_bytes
    assert crowded.total <= crowded.allowed == int(crowded.free * SHARE)


def test_an_automatic_context_is_reduced_to_what_fits(long_context: Path) -> None:
    full = plan_of(long_context)
    assert full.context == 65536 and full.kv_tokens >= 65536
    reduced = plan_of(long_context, kv_cache_memory=4 << 20)
    fits = (4 << 20) // reduced.page_bytes * PAGE_TOKENS
    assert reduced.context == fits < reduced.model_context == 65536
    assert reduced.kv_tokens == fits and reduced.layouts.bounds.max_model_len == fits
    small = plan_of(long_context, free=150 << 20)
    assert 512 <= small.context < 65536 and small.total <= small.allowed and small.kv_tokens >= small.context


def test_what_does_not_fit_is_refused_with_figures_and_ways_out(long_context: Path) -> None:
    pool, everything = "--kv-cache-memory", "--gpu-memory-utilization"
    for options, free, words in (
        ({"max_model_len": 65536, "kv_cache_memory": 4 << 20}, 8 * GIB, ("65,536 tokens", "--max-model-len", pool)),
        ({"max_model_len": 65536}, 150 << 20, ("GiB allowed", "--max-model-len", everything)),
        ({}, 60 << 20, ("GiB allowed", everything, "smaller weights")),  # not even an empty pool
        ({"kv_cache_memory": 1 << 20, "max_model_len": 60000}, 8 * GIB, ("1 MiB are given", "--max-model-len", pool)),
    ):
        with pytest.raises(DoesNotFit) as refused:
            plan_of(long_context, free=free, **options)
        assert all(word in str(refused.value) for word in ("does not fit: needs", *words)), str(refused.value)


def test_the_length_that_the_refusal_names_fits(long_context: Path) -> None:
    with pytest.raises(DoesNotFit) as refused:
        plan_of(long_context, max_model_len=65536, kv_cache_memory=4 << 20)
    named = int(str(refused.value).split("--max-model-len ")[1].split()[0])
    assert plan_of(long_context, max_model_len=named, kv_cache_memory=4 << 20).context == named


def test_more_than_the_model_can_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-model-len"):
        plan_of(path, max_model_len=513)


def test_nothing_is_read_but_headers(path: Path, tmp_path: Path) -> None:
    """A folder whose weights are a hole in a file still has a plan."""
    folder = tiny.folder(tmp_path / "model")
    file = folder / "model.safetensors"
    header = file.read_bytes()[: 8 + int.from_bytes(file.read_bytes()[:8], "little")]
    size = file.stat().st_size
    wanted = plan_of(folder)
    file.write_bytes(header)
    with file.open("r+b") as sparse:
        sparse.truncate(size)
    assert plan_of(folder).regions == wanted.regions
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 64


def test_page_operations_hold_a_whole_step(path: Path) -> None:
    """Every row may begin a page, and each sequence may copy one."""
    bounds = plan_of(path).layouts.bounds
    assert page_ops(bounds) >= bounds.max_rows // PAGE_TOKENS + 2 * bounds.max_seqs
