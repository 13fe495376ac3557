"""Traces for an OpenTelemetry collector: below FastAPI's span of a request, what the engine did.

Imported only where traces are asked for; needs the extra ``otel``.
"""

import time

from fastapi.telemetry import TelemetryConfig
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import Scope

from app.engine.sequence import FinishReason, Timings
from app.metrics.metrics import Labels

_UNTRACED = ("/metrics", "/health/")  # asked every few seconds by machines


class Tracing:
    """The spans of one process. ``shutdown`` sends what is left, and may wait for the collector."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "sleb-serve"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sleb-serve")

    @property
    def fastapi(self) -> TelemetryConfig:
        """For the app: spans of requests alone, as metrics and logs go other ways."""
        return TelemetryConfig(
            tracer_provider=self._provider,
            tracing=True,
            metrics=False,
            logs=False,
            operation_spans=False,
            auto_configure=False,
            exclude=_is_untraced,
        )

    def finished(
        self, labels: Labels, num_prompt_tokens: int, reason: FinishReason, timings: Timings
    ) -> None:
        """Tell of a request that has left the engine; names of attributes as in OpenTelemetry."""
        clock = _Clock()
        model_name, variant, traffic = labels.values
        span = self._tracer.start_span(
            f"generate {model_name}",
            labels.origin.run(context.get_current),
            start_time=clock.epoch_ns(timings.arrived_s),
            attributes={
                "gen_ai.operation.name": "text_completion",
                "gen_ai.response.model": model_name,
                "gen_ai.response.finish_reasons": (reason.value,),
                "gen_ai.usage.input_tokens": num_prompt_tokens,
                "gen_ai.usage.output_tokens": timings.num_tokens,
                "sleb.variant": variant,
                "sleb.traffic": traffic,
                **({"sleb.request_id": labels.request_id} if labels.request_id else {}),
            },
        )
        if reason is FinishReason.ERROR:
            span.set_status(trace.StatusCode.ERROR)
        below = trace.set_span_in_context(span)
        for name, began_s, ended_s in _phases(timings):
            phase = self._tracer.start_span(name, below, start_time=clock.epoch_ns(began_s))
            phase.end(clock.epoch_ns(ended_s))
        span.end(clock.epoch_ns(timings.finished_s))

    def shutdown(self) -> None:
        self._provider.shutdown()


def tracing_to(endpoint: str) -> Tracing:
    """By OTLP over HTTP, to ``endpoint`` and ``/v1/traces`` behind it."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))


class _Clock:
    """From moments on the monotonic clock to nanoseconds since the epoch."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def epoch_ns(self, monotonic_s: float) -> int:
        return self._offset_ns + round(monotonic_s * 1e9)


def _phases(timings: Timings) -> list[tuple[str, float, float]]:
    """Those that were reached, each until the next one or the end."""
    starts = (
        ("queue", timings.arrived_s),
        ("prefill", timings.scheduled_s),
        ("decode", timings.first_token_s),
    )
    reached = [(name, began_s) for name, began_s in starts if began_s is not None]
    ends_s = [began_s for _, began_s in reached[1:]] + [timings.finished_s]
    return [(name, began_s, end_s) for (name, began_s), end_s in zip(reached, ends_s, strict=True)]


def _is_untraced(scope: Scope) -> bool:
    return str(scope.get("path", "")).startswith(_UNTRACED)
