"""Traces for an OpenTelemetry collector: spans of the engine below FastAPI's span of a request.

Needs the extra ``otel``, so it is imported only when tracing is on.
"""

import time

from fastapi.telemetry import TelemetryConfig
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import Scope

from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.metrics import Labels

_UNTRACED = ("/metrics", "/health", "/ping")  # polled every few seconds


class Tracing:
    """Records the spans of one process.

    ``shutdown`` sends the spans that are left, which may wait for the collector.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "sleb-serve"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("sleb-serve")

    @property
    def fastapi(self) -> TelemetryConfig:
        """The settings for FastAPI: spans of requests, but neither metrics nor logs."""
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
        """Record a request that has left the engine.

        Attributes follow OpenTelemetry's semantic conventions for generative AI.
        """
        offset_ns = time.time_ns() - time.monotonic_ns()

        def epoch_ns(monotonic_s: float) -> int:
            return offset_ns + round(monotonic_s * 1e9)

        model_name, variant, traffic, engine = labels.values
        span = self._tracer.start_span(
            f"generate {model_name}",
            labels.origin.run(context.get_current),
            start_time=epoch_ns(timings.arrived_s),
            attributes={
                "gen_ai.operation.name": "text_completion",
                "gen_ai.response.model": model_name,
                "gen_ai.response.finish_reasons": (reason.value,),
                "gen_ai.usage.input_tokens": num_prompt_tokens,
                "gen_ai.usage.output_tokens": timings.num_tokens,
                "sleb.variant": variant,
                "sleb.traffic": traffic,
                "sleb.engine": engine,
                **({"sleb.request_id": labels.request_id} if labels.request_id else {}),
            },
        )
        if reason is FinishReason.ERROR:
            span.set_status(trace.StatusCode.ERROR)
        below = trace.set_span_in_context(span)
        for name, started_s, ended_s in _phases(timings):
            phase = self._tracer.start_span(name, below, start_time=epoch_ns(started_s))
            phase.end(epoch_ns(ended_s))
        span.end(epoch_ns(timings.finished_s))

    def shutdown(self) -> None:
        self._provider.shutdown()


def tracing_to(endpoint: str) -> Tracing:
    """Return a tracing that sends by OTLP over HTTP to ``/v1/traces`` of the endpoint."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces")))


def _phases(timings: Timings) -> list[tuple[str, float, float]]:
    """Return name, start and end of each phase that was reached."""
    starts = (
        ("queue", timings.arrived_s),
        ("prefill", timings.scheduled_s),
        ("decode", timings.first_token_s),
    )
    reached = [(name, start_s) for name, start_s in starts if start_s is not None]
    ends_s = [start_s for _, start_s in reached[1:]] + [timings.finished_s]
    return [(name, start_s, end_s) for (name, start_s), end_s in zip(reached, ends_s, strict=True)]


def _is_untraced(scope: Scope) -> bool:
    return str(scope.get("path", "")).startswith(_UNTRACED)
