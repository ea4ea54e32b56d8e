"""The memory plan: every region to the byte before anything is allocated, and the choices that follow from it.

Free memory -> KV pool -> context length, as design section 6 settles it. It reads headers only; `octavo plan` prints
it, the engine allocates exactly it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from octavo.checkpoints.checkpoint import Checkpoint
from octavo.checkpoints.pooling import Pooling, pooling_of
from octavo.config import EngineConfig
from octavo.errors import ConfigError, DoesNotFit
from octavo.execution.native import Bounds, Layouts, Regions, lay_out
from octavo.execution.step import PAGE_TOKENS
from octavo.kernels import library
from octavo.lowering.layouts import outer_weights, routing_weights
from octavo.lowering.lower import LoweringFacts, lower
from octavo.lowering.lowered import Lowered
from octavo.lowering.numerics import quantizes
from octavo.models import binding, registry
from octavo.models.source import WeightSource
from octavo.program.trace import states_of, trace, weights_of
from octavo.quantization.kv import kv_dtype

SHARE = 0.85  # of the free memory that everything together may take
KV_SHARE = 0.40  # of the free memory that the KV pool takes by itself
TOKENS_PER_SEQUENCE = 2048  # what a sequence is expected to hold, where the context is longer
# Resident anonymous memory of the two processes without a model, measured (docs/performance.md): interpreter and
# libraries. The tokenizer takes up to 1 KiB an entry of the vocabulary in the front.
ENGINE_RUNTIME = 40 << 20
FRONT_RUNTIME = 45 << 20
TOKENIZER_ENTRY = 1024
MIN_CONTEXT = 512  # tokens: what an automatic context is not reduced below


@dataclass(frozen=True)
class MemoryPlan:
    """What will be allocated. `regions` are exact; runtime and tokenizer are bounds. pooling: None for text."""

    layouts: Layouts
    free: int  # bytes when the plan was made
    allowed: int
    context: int  # tokens of one sequence at most
    model_context: int  # what the model itself can
    page_bytes: int
    sources: dict[str, WeightSource]
    vocab: int
    pooling: Pooling | None = None

    @property
    def regions(self) -> Regions:
        return self.layouts.regions

    @property
    def runtime(self) -> int:
        return ENGINE_RUNTIME + FRONT_RUNTIME + TOKENIZER_ENTRY * self.vocab

    @property
    def total(self) -> int:
        regions: dict[str, int] = asdict(self.regions)
        return sum(regions.values()) + self.runtime

    @property
    def kv_tokens(self) -> int:
        """Tokens that the pool holds; page 0 is the null page."""
        return (self.layouts.bounds.pages - 1) * PAGE_TOKENS


def make_plan(checkpoint: Checkpoint, config: EngineConfig, *, free: int, threads: int) -> MemoryPlan:
    """Plan a model under `config` with `free` bytes of memory. Raises DoesNotFit, UnsupportedModel, CheckpointError."""
    pooling = pooling_of(checkpoint, config.task, config.pooling)
    model_context = registry.build(checkpoint, positions=PAGE_TOKENS, pooling=pooling).max_positions
    if pooling is not None and pooling.longest is not None:
        model_context = min(model_context, pooling.longest)
    if config.max_model_len is not None and config.max_model_len > model_context:
        raise ConfigError(
            f"--max-model-len {config.max_model_len:,}: the model was made for {model_context:,} tokens at most.",
            flag="--max-model-len",
        )
    share = SHARE if config.gpu_memory_utilization is None else config.gpu_memory_utilization
    allowed = int(free * share)

    lowered: dict[int, _Lowered] = {}  # by context: a pool of another size changes no phase, and lowering takes 25 ms

    def plan(context: int, pages: int) -> MemoryPlan:
        if context not in lowered:
            lowered[context] = _lower(checkpoint, config, context, threads, pooling)
        return _lay_out(lowered[context], config, pages, (free, allowed, model_context, threads))

    context = config.max_model_len or model_context
    empty = plan(context, 1)
    pages = _pages(config, empty, context)
    fits = plan(context, pages)
    if fits.total <= allowed and (pages - 1) * PAGE_TOKENS >= context:
        return fits
    return _shrink(config, plan, empty, context)


def _pages(config: EngineConfig, empty: MemoryPlan, context: int) -> int:
    """Pages of the pool, the null page included."""
    page, allowed = empty.page_bytes, empty.allowed
    if any(each.group.kind == "whole" for each in empty.layouts.lowered.groups):  # pages of one step are enough
        rows = empty.layouts.bounds.max_rows
        return 1 + -(-rows // PAGE_TOKENS) + config.max_num_seqs * (config.block_size // PAGE_TOKENS)
    room = max(0, allowed - empty.total)
    if config.kv_cache_memory is not None:
        return 1 + config.kv_cache_memory // page
    if config.gpu_memory_utilization is not None:
        return 1 + room // page
    wanted = max(context, config.max_num_seqs * min(context, TOKENS_PER_SEQUENCE))
    pages = -(-wanted // PAGE_TOKENS)
    one = -(-context // PAGE_TOKENS)
    return 1 + max(min(pages, int(empty.free * KV_SHARE) // page), min(one, room // page))


def _shrink(
    config: EngineConfig, plan: Callable[[int, int], MemoryPlan], empty: MemoryPlan, context: int
) -> MemoryPlan:
    """One sequence of full context does not fit: reduce an automatic context, else refuse."""
    pool = config.kv_cache_memory if config.kv_cache_memory is not None else empty.allowed - empty.total
    pages = max(0, pool // empty.page_bytes)
    fitting = pages * PAGE_TOKENS
    least = min(MIN_CONTEXT, context)
    if config.max_model_len is None and fitting >= least and empty.total <= empty.allowed:
        reduced = min(context, fitting)
        made = plan(reduced, 1 + pages)
        if made.total <= made.allowed:
            return made
    raise DoesNotFit(_refusal(config, plan(context, 1 + -(-context // PAGE_TOKENS)), pages * PAGE_TOKENS))


def _refusal(config: EngineConfig, needed: MemoryPlan, fitting: int) -> str:
    """What does not fit, the figures, and the ways out, one a line."""
    regions, asked = needed.regions, config.kv_cache_memory
    if asked is not None and needed.total <= needed.allowed:
        kv, given = f"{regions.kv / 2**20:,.0f} MiB", f"{asked / 2**20:,.0f} MiB"
        what = f"needs {kv} of KV cache for {needed.context:,} tokens, {given} are given"
    else:
        what = (
            f"needs {needed.total / 2**30:.1f} GiB, {needed.allowed / 2**30:.1f} GiB allowed (weights "
            f"{regions.weights / 2**30:.1f} + KV {regions.kv / 2**30:.1f} for {needed.context:,} tokens + arena "
            f"{regions.arena / 2**30:.1f})"
        )
    shorter = [f"  shorter context  --max-model-len {fitting}"] if fitting >= PAGE_TOKENS else []
    more = f"  more memory      {'--gpu-memory-utilization' if asked is None else '--kv-cache-memory'}"
    floats = config.quantization == "auto" and any(
        not quantizes(each.format) for each in needed.sources.values() if len(each.shape) > 1
    )
    smaller = "--quantization int8" if floats else "another file of the model"
    rest = [f"  smaller weights  {smaller}", "  details          octavo plan"]
    return "\n".join([f"does not fit: {what}", *shorter, more, *rest])


@dataclass(frozen=True)
class _Lowered:
    """A model lowered for one context."""

    lowered: Lowered
    sources: dict[str, WeightSource]
    context: int
    rows: int  # of a step at most
    vocab: int
    pooling: Pooling | None


def _lower(
    checkpoint: Checkpoint, config: EngineConfig, context: int, threads: int, pooling: Pooling | None
) -> _Lowered:
    model = registry.build(checkpoint, positions=context, pooling=pooling)
    programs = trace(model.functions)
    whole = any(group.kind == "whole" for group in states_of(programs))
    sources = binding.bind(checkpoint, model, weights_of(programs))
    if config.quantization != "auto":
        sources = binding.rounded(
            sources, config.quantization, outer_weights(programs.values()), routing_weights(programs.values())
        )
        if all(source.rounded is None for source in sources.values()):
            raise ConfigError(
                f"--quantization {config.quantization}: the weights are {checkpoint.weight_format}, and only floats "
                "are rounded while they are loaded. Leave the option out.",
                flag="--quantization",
            )
    rows = min(config.max_num_batched_tokens, max(context, config.max_num_seqs))
    rows = max(rows, config.max_num_seqs, context if whole else 0)
    facts = LoweringFacts(
        formats={name: source.held for name, source in sources.items()},
        max_rows=rows,
        max_seqs=config.max_num_seqs,
        max_model_len=context,
        kv_dtype="float32" if whole else kv_dtype(config.kv_cache_dtype).name,  # nothing is kept: exact, and small
        threads=threads,
        sums=library.sums_super_blocks(config.isa),
    )
    return _Lowered(lower(programs, facts), sources, context, rows, model.vocab_size, pooling)


def _lay_out(model: _Lowered, config: EngineConfig, pages: int, given: tuple[int, int, int, int]) -> MemoryPlan:
    """A plan of exactly this context and pool."""
    free, allowed, model_context, threads = given
    bounds = Bounds(model.rows, config.max_num_seqs, model.context, pages, threads)
    layouts = lay_out(model.lowered, model.sources, bounds, model.vocab)
    return MemoryPlan(
        layouts, free, allowed, model.context, model_context, layouts.page_bytes, model.sources, model.vocab,
        model.pooling,
    )  # fmt: skip
