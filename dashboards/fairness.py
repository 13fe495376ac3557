"""The rows on service level and on fairness: do both models get similar requests?"""

from collections.abc import Iterator, Sequence

from dashboards import queries
from dashboards.frame import Panel
from dashboards.panels import About, Query, lines
from dashboards.queries import DENSE, PRUNED, TPOT, TTFT

BOTH = ((DENSE, "$dense"), (PRUNED, "$pruned"))
_MEANS = (
    ("Prompt length", "sleb_request_prompt_tokens", "short", "Mean number of tokens."),
    (
        "Output length",
        "sleb_request_generation_tokens",
        "short",
        "Mean number of tokens. Shorter outputs lower end-to-end latency without any speed-up.",
    ),
    (
        "Batch size",
        "sleb_request_batch_size",
        "short",
        "Mean number of sequences in a decode step. Larger batches take longer per token.",
    ),
    (
        "Queue time",
        "sleb_request_queue_time_seconds",
        "s",
        "Mean time from arrival to first forward pass. It is a part of the time to first token.",
    ),
)


def service_level() -> Iterator[Panel]:
    for metric, what, le in (
        (TTFT, "time to first token", "$ttft_slo"),
        (TPOT, "time per output token", "$tpot_slo"),
    ):
        about = About(
            f"Requests with {what} ≤ {le} s",
            "Share of requests within the limit. It is exact, as the limit is a bucket boundary.",
            "percentunit",
            width=12,
        )
        yield lines(
            about, [Query(name, queries.attainment(metric, model, le)) for model, name in BOTH]
        )


def fairness() -> Iterator[Panel]:
    for title, metric, unit, text in _MEANS:
        means = [
            Query(name, queries.mean(metric, model, "$__rate_interval")) for model, name in BOTH
        ]
        yield lines(About(title, text, unit), means)
    for title, metric in (
        ("Prompt length, quantiles", "sleb_request_prompt_tokens"),
        ("Output length, quantiles", "sleb_request_generation_tokens"),
    ):
        text = "Accurate to a bucket of the histogram: 1, 2, 5, 10, 20, 50 and so on."
        yield lines(About(title, text, "short"), quantiles_of(metric, (0.5, 0.95)))
    yield from _load()


def _load() -> Iterator[Panel]:
    running = 'sum by (model_name) (sleb_num_requests_running{model_name=~"$dense|$pruned"})'
    text = "Requests of all kinds of traffic. No data while a model is not loaded."
    yield lines(About("Running requests", text, "short"), [Query("{{model_name}}", running)])
    tokens = [
        Query(name, f"sum(rate(sleb_generation_tokens_total{queries.of(model)}[$__rate_interval]))")
        for model, name in BOTH
    ]
    yield lines(About("Output tokens per second", "Of all requests.", "short"), tokens)


def quantiles_of(metric: str, shares: Sequence[float]) -> list[Query]:
    """These quantiles of a histogram, for both models."""
    return [
        Query(f"p{share * 100:g} {name}", queries.quantile(share, metric, model))
        for share in shares
        for model, name in BOTH
    ]
