"""What is measured, under vLLM's names with the prefix `octavo:`, and the line of statistics every 10 seconds.

Gauges and totals come from the engine when they are asked for; totals go on over a restart of the engine. Times are
those of the front. It knows no request's text.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from octavo import logs
from octavo.errors import OctavoError
from octavo.request import Usage
from octavo.stats import STEP_TOKENS

if TYPE_CHECKING:
    from octavo.async_llm import AsyncLLM

LOG_SECONDS = 10.0
QUEUE = "max_num_queued_reqs"  # the bound that a refused request met
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5)  # s between tokens
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)  # s of a request
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

# Engine statistic -> (metric, its meaning).
GAUGES = {
    "running": ("num_requests_running", "Sequences that are computed."),
    "waiting": ("num_requests_waiting", "Requests that wait to be computed."),
    "kv_usage": ("kv_cache_usage_perc", "Share of the KV cache's blocks that sequences own, 0 to 1."),
}
TOTALS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens computed."),
    "generated_tokens": ("generation_tokens", "Tokens made."),
    "preemptions": ("num_preemptions", "Sequences that gave up their blocks for others."),
    "queried_tokens": ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "hit_tokens": ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    "steps": ("engine_steps", "Steps executed."),
    "drafts": ("spec_decode_num_drafts", "Sequences' steps with drafted tokens."),
    "draft_tokens": ("spec_decode_num_draft_tokens", "Drafted tokens."),
    "accepted_tokens": ("spec_decode_num_accepted_tokens", "Drafted tokens that were accepted."),
    "step_rows": ("engine_step_rows", "Token rows of all steps."),
    "masks": ("structured_output_masks", "Masks made for constrained sequences."),
    "nonfinite": ("corrupted_requests", "Sequences that ended because of a non-finite logit."),
}


# The same numbers as some of TOTALS, under further names of vLLM's: metric, label, meaning.
SOURCES = {"prompt_tokens": "local_compute", "hit_tokens": "local_cache_hit"}


class Timed(Protocol):
    """What is told of a request at its end: submit.Answering."""

    choices: int

    @property
    def usage(self) -> Usage: ...
    @property
    def seconds(self) -> tuple[float, float, float]: ...
    @property
    def queued(self) -> float: ...
    @property
    def longest(self) -> int: ...
    @property
    def most(self) -> int | None: ...


@dataclass(frozen=True)
class Snapshot:
    """The engine's statistics at one moment; totals since the front's start."""

    at: float
    gauges: dict[str, float]
    totals: dict[str, int]
    steps: tuple[int, ...] = ()  # by their token rows, see stats.STEP_TOKENS
    blocks: int = 0  # of the KV cache


class _Engine(Collector):
    """The last snapshot as Prometheus wants it."""

    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.snapshot: Snapshot | None = None
        self.healthy = 0.0
        self.restarts = self.resumed = 0
        self.cache: dict[str, str] = {}

    def collect(self) -> Iterator[Metric]:
        names, values = list(self.labels), list(self.labels.values())
        up = GaugeMetricFamily("octavo:engine_healthy", "1 if a request would be served now.", labels=names)
        up.add_metric(values, self.healthy)
        yield up
        for name, meaning, value in (
            ("engine_restarts", "Engines that took the place of one that died.", self.restarts),
            ("requests_resumed", "Requests that went on with a later engine.", self.resumed),
        ):
            total = CounterMetricFamily(f"octavo:{name}", meaning, labels=names)
            total.add_metric(values, value)
            yield total
        if self.snapshot is None:
            return
        for key, (name, meaning) in GAUGES.items():
            gauge = GaugeMetricFamily(f"octavo:{name}", meaning, labels=names)
            gauge.add_metric(values, self.snapshot.gauges[key])
            yield gauge
        for key, (name, meaning) in TOTALS.items():
            total = CounterMetricFamily(f"octavo:{name}", meaning, labels=names)
            total.add_metric(values, self.snapshot.totals[key])
            yield total
        yield from self._more(self.snapshot, names, values)

    def _more(self, snapshot: Snapshot, names: list[str], values: list[str]) -> Iterator[Metric]:
        """What has labels or buckets of its own."""
        cached = CounterMetricFamily(
            "octavo:prompt_tokens_cached", "Prompt tokens that were not computed.", labels=names
        )
        cached.add_metric(values, snapshot.totals["hit_tokens"])
        yield cached
        whence = CounterMetricFamily(
            "octavo:prompt_tokens_by_source", "Prompt tokens by where their KV comes from.", labels=[*names, "source"]
        )
        for key, source in SOURCES.items():
            whence.add_metric([*values, source], snapshot.totals[key])
        yield whence
        steps = HistogramMetricFamily("octavo:iteration_tokens_total", "Token rows of a step.", labels=names)
        bounds = [*map(floatToGoString, STEP_TOKENS), "+Inf"]
        buckets = list(zip(bounds, accumulate(snapshot.steps), strict=True)) if snapshot.steps else []
        if buckets:
            steps.add_metric(values, buckets, snapshot.totals["step_rows"])
        yield steps
        facts = {**self.cache, "num_gpu_blocks": str(snapshot.blocks)}  # vLLM's name, whatever the device
        about = GaugeMetricFamily("octavo:cache_config_info", "The KV cache.", labels=[*names, *facts])
        about.add_metric([*values, *facts.values()], 1)
        yield about


class _Histogram(Collector):
    """A histogram that is told of every token: prometheus_client's takes a lock and six times as long."""

    def __init__(self, name: str, meaning: str, labels: dict[str, str], bounds: Sequence[float]) -> None:
        self._about = name, meaning
        self._labels = labels
        self._bounds = bounds  # seconds, ascending
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(*self._about, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family


class Metrics:
    """All metrics of one server."""

    def __init__(self, model: str, cache: Mapping[str, object] | None = None) -> None:
        """cache: what is told of the KV cache's options."""
        # A second series for each, which nobody reads; the library leaves this function without types.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        labels = {"model_name": model, "engine": "0"}
        self.engine = _Engine(labels)
        self.engine.cache = {name: str(value) for name, value in (cache or {}).items()}
        self.registry.register(self.engine)
        self._labels = list(labels.values())
        names = list(labels)

        def histogram(name: str, meaning: str, bounds: Sequence[float]) -> _Histogram:
            made = _Histogram(f"octavo:{name}", meaning, labels, bounds)
            self.registry.register(made)
            return made

        self.first_token = histogram("time_to_first_token_seconds", "From the request to its first token.", _SLOW)
        self.gap = histogram("inter_token_latency_seconds", "Between two batches of tokens of a request.", _FAST)
        self._per_token = histogram("request_time_per_output_token_seconds", "Mean time of a request's tokens.", _FAST)
        self._latency = histogram("e2e_request_latency_seconds", "From the request to its last token.", _SLOW)
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", _COUNTS)
        self._generated = histogram("request_generation_tokens", "Tokens made for a request.", _COUNTS)
        self._queue = histogram(
            "request_queue_time_seconds", "From its arrival in the engine to its first step.", _SLOW
        )
        self._prefill = histogram("request_prefill_time_seconds", "From there to its first token.", _SLOW)
        self._decode = histogram("request_decode_time_seconds", "From its first token to its last.", _SLOW)
        self._inference = histogram("request_inference_time_seconds", "Both: the time that it ran.", _SLOW)
        self._computed = histogram("request_prefill_kv_computed_tokens", "Prompt tokens that were computed.", _COUNTS)
        self._longest = histogram("request_max_num_generation_tokens", "Tokens of its longest answer.", _COUNTS)
        self._most = histogram("request_params_max_tokens", "Tokens that an answer may have.", _COUNTS)
        self._n = histogram("request_params_n", "Answers asked for.", (1, 2, 5, 10, 20, 50, 100))
        self._reasons = Counter(
            "octavo:request_success", "Choices that ended, by reason.", [*names, "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._refusals = Counter(
            "octavo:admission_rejections", "Requests that found the queue full.", [*names, "reason"],
            registry=self.registry,
        )  # fmt: skip
        self._refusals.labels(*self._labels, QUEUE)  # at 0 from the beginning
        ProcessCollector(registry=self.registry)
        self._calls = Counter(
            "octavo:http_requests", "HTTP calls.", ["handler", "method", "status"], registry=self.registry
        )
        self.served = self.tokens = 0  # requests and tokens since the start, for the last line
        self._base = dict.fromkeys(TOTALS, 0)
        self._seen = dict.fromkeys(TOTALS, 0)
        self._step_counts = [0] * (len(STEP_TOKENS) + 1), [0] * (len(STEP_TOKENS) + 1)

    def finished(self, reason: str) -> None:
        """A choice ended."""
        self._reasons.labels(*self._labels, str(reason)).inc()

    def request_ended(self, request: Timed, failure: str | None) -> None:
        """A request ended: by itself, or by its client (`abort`) or an error (`error`)."""
        usage = request.usage
        self.tokens += usage.completion_tokens
        if failure is not None:
            self.finished(failure)
            return
        self.served += 1
        first, following, whole = request.seconds
        self._latency.observe(whole)
        self._prompt.observe(usage.prompt_tokens)
        self._generated.observe(usage.completion_tokens)
        self._n.observe(request.choices)
        self._queue.observe(request.queued)
        prefill = max(0.0, first - request.queued)
        self._prefill.observe(prefill)
        self._decode.observe(following)
        self._inference.observe(prefill + following)
        self._computed.observe(usage.prompt_tokens - usage.cached_tokens)
        self._longest.observe(request.longest)
        if request.most is not None:
            self._most.observe(request.most)
        if usage.completion_tokens > 1:
            self._per_token.observe(following / (usage.completion_tokens - 1))

    def refused(self) -> None:
        """A request found the queue full."""
        self._refusals.labels(*self._labels, QUEUE).inc()

    def called(self, handler: str, method: str, status: int) -> None:
        """An HTTP call was answered. handler: a label of the table of routes, never the client's own path."""
        self._calls.labels(handler, method, str(status)).inc()

    async def refresh(self, llm: AsyncLLM, healthy: bool) -> Snapshot | None:
        """Ask the engine; the last snapshot stays if there is none to ask."""
        self.engine.healthy = float(healthy)
        self.engine.restarts, self.engine.resumed = llm.client.restarts, llm.client.resumed
        try:
            stats = await llm.client.stats()
        except OctavoError:
            return self.engine.snapshot
        for key in TOTALS:
            value = int(getattr(stats, key))
            if value < self._seen[key]:  # a new engine counts from nothing
                self._base[key] += self._seen[key]
            self._seen[key] = value
        self.engine.snapshot = Snapshot(
            time.monotonic(),
            {key: float(getattr(stats, key)) for key in GAUGES},
            {key: self._base[key] + self._seen[key] for key in TOTALS},
            self._steps(stats.step_tokens),
            stats.blocks_total,
        )
        return self.engine.snapshot

    def _steps(self, counts: list[int]) -> tuple[int, ...]:
        """Steps by their rows, over all engines so far."""
        before, seen = self._step_counts
        if sum(counts) < sum(seen):  # a new engine counts from nothing
            before = [a + b for a, b in zip(before, seen, strict=True)]
        self._step_counts = before, counts
        return tuple(a + b for a, b in zip(before, counts, strict=True))

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)


async def log_statistics(metrics: Metrics, llm: AsyncLLM, device: str = "CPU", every: float = LOG_SECONDS) -> None:
    """vLLM's line every 10 s while anything ran in the last two intervals; ends when it is cancelled."""
    last = await metrics.refresh(llm, True)
    busy = 0
    while True:
        await asyncio.sleep(every)
        now = await metrics.refresh(llm, llm.client.ready)
        if now is None or last is None or now is last:
            last = now
            continue
        ran = now.totals["steps"] > last.totals["steps"] or now.gauges["running"] or now.gauges["waiting"]
        busy = 2 if ran else max(0, busy - 1)
        if busy:
            logs.get("engine").info("%s", statistics_line(last, now, device))
        last = now


def statistics_line(last: Snapshot, now: Snapshot, device: str) -> str:
    """The line in vLLM's words, which people grep for."""
    seconds = max(now.at - last.at, 1e-9)
    prompt = (now.totals["prompt_tokens"] - last.totals["prompt_tokens"]) / seconds
    made = (now.totals["generated_tokens"] - last.totals["generated_tokens"]) / seconds
    preempted = now.totals["preemptions"] - last.totals["preemptions"]
    queried = now.totals["queried_tokens"]
    return ", ".join(
        [
            f"Avg prompt throughput: {prompt:.1f} tokens/s",
            f"Avg generation throughput: {made:.1f} tokens/s",
            f"Running: {now.gauges['running']:.0f} reqs",
            f"Waiting: {now.gauges['waiting']:.0f} reqs",
            *([f"Preemptions: {preempted}"] if preempted else []),
            f"{device} KV cache usage: {now.gauges['kv_usage'] * 100:.1f}%",
            f"Prefix cache hit rate: {100 * now.totals['hit_tokens'] / queried if queried else 0.0:.1f}%",
        ]
    )
