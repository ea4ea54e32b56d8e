"""One span for each request, sent to an OpenTelemetry collector over HTTP (`--otlp-traces-endpoint`).

A span says how long a request waited, read and answered, and how many tokens that were: never what was in it. Its names
are those of OpenTelemetry's conventions (`gen_ai.*`) and vLLM's. The packages are an extra, imported when asked for;
without an endpoint nothing of this is made. It knows no route.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from octavo import __version__
from octavo.errors import ConfigError
from octavo.sampling_params import SamplingParams
from octavo.server.metrics import Timed

if TYPE_CHECKING:
    from opentelemetry.context import Context

EXPORT_SECONDS = 5.0  # for a collector to take what it is sent
PATH = "/v1/traces"
TEXTS = ("completions", "completion", "infill", "generate")  # ends of routes whose prompts are texts


class Traced(Timed, Protocol):
    """What a span tells beyond the metrics."""

    @property
    def params(self) -> SamplingParams: ...
    @property
    def reasons(self) -> list[str]: ...


@dataclass(frozen=True)
class Origin:
    """Where a request comes from: the trace that its client works on, its id, its route."""

    context: Context | None
    request_id: str
    route: str


NOBODY = Origin(None, "", "")
_ORIGIN: ContextVar[Origin | None] = ContextVar("origin", default=None)


class Tracing:
    """Sends spans; `close` sends the last ones."""

    def __init__(self, endpoint: str) -> None:
        """Raises ConfigError for an endpoint that is none, or where the extra is not installed."""
        url = traces_url(endpoint)
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(
                f"--otlp-traces-endpoint: {error.name or 'opentelemetry'} is missing: pip install 'octavo[otel]'",
                flag="--otlp-traces-endpoint",
            ) from None
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):  # OTEL_SERVICE_NAME is unset
            resource = resource.merge(Resource({"service.name": "octavo"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("octavo", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._kind = trace.SpanKind.SERVER
        self._failed = trace.StatusCode.ERROR

    def enter(self, headers: Iterable[tuple[bytes, bytes]], request_id: str, route: str) -> None:
        """From now on the running task works for this call."""
        wanted = {n.decode(): v.decode("latin-1") for n, v in headers if n in (b"traceparent", b"tracestate")}
        _ORIGIN.set(Origin(self._propagator.extract(wanted) if wanted else None, request_id, route))

    def begin(self, ago: float, model: str) -> Span:
        """The span of a request that began so many seconds ago, for the call that the running task works for."""
        return Span(self, model, time.time_ns() - round(ago * 1e9), _ORIGIN.get() or NOBODY)

    def record(self, about: Span, request: Traced, failure: str | None) -> None:
        """A whole span."""
        origin, begin = about.origin, about.begin
        text = origin.route.endswith(TEXTS) and not origin.route.endswith("chat/completions")
        operation = "text_completion" if text else "chat"
        made = attributes(request, about.model)
        made |= {"gen_ai.operation.name": operation, "gen_ai.request.id": origin.request_id, "http.route": origin.route}
        span = self._tracer.start_span(
            f"{operation} {about.model}", origin.context, self._kind, made, start_time=begin,
        )  # fmt: skip
        if failure is not None:
            span.set_attribute("error.type", failure)
            if failure == "error":
                span.set_status(self._failed)
        span.end(begin + round(request.seconds[2] * 1e9))

    def close(self) -> None:
        """Send what is left. Takes EXPORT_SECONDS at most: the library would try for longer to reach nobody."""
        last = threading.Thread(target=self._provider.shutdown, name="octavo-traces", daemon=True)
        last.start()
        last.join(EXPORT_SECONDS)


@dataclass
class Span:
    """One that has begun. begin: ns since 1970."""

    tracing: Tracing
    model: str
    begin: int
    origin: Origin

    def end(self, request: Traced, failure: str | None) -> None:
        self.tracing.record(self, request, failure)


def attributes(request: Traced, model: str) -> dict[str, Any]:
    """Of a request that has ended."""
    params, usage = request.params, request.usage
    first, following, whole = request.seconds
    prefill = max(0.0, first - request.queued)
    made: dict[str, Any] = {
        "gen_ai.system": "octavo",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.n": request.choices,
        "gen_ai.request.choice.count": request.choices,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
        "gen_ai.request.presence_penalty": params.presence_penalty or None,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.completion_tokens": usage.completion_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        "gen_ai.response.finish_reasons": request.reasons or None,
        "gen_ai.latency.time_in_queue": request.queued,
        "gen_ai.latency.time_to_first_token": first,
        "gen_ai.latency.time_in_model_prefill": prefill,
        "gen_ai.latency.time_in_model_decode": following,
        "gen_ai.latency.time_in_model_inference": prefill + following,
        "gen_ai.latency.e2e": whole,
    }
    return {name: value for name, value in made.items() if value is not None}


def traces_url(endpoint: str) -> str:
    """Where traces go: `http://HOST:4318` means its /v1/traces. ConfigError for what is not HTTP."""
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--otlp-traces-endpoint: expected http://HOST:4318 (OTLP over HTTP), got {endpoint[:100]!r}. A "
            "collector's port 4317 speaks gRPC, which is not spoken here.",
            flag="--otlp-traces-endpoint",
        )
    return parts._replace(path=parts.path if parts.path.strip("/") else PATH).geturl()
