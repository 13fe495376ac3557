"""Whether requests were served in time, and whether those of both models were alike at all."""

from collections.abc import Iterator

from dashboards import queries
from dashboards.frame import Panel
from dashboards.panels import About, Query, lines
from dashboards.queries import DENSE, PRUNED, TPOT, TTFT

BOTH = ((DENSE, "$dense"), (PRUNED, "$pruned"))


def service_level() -> Iterator[Panel]:
    kinds = ((TTFT, "first token", "$ttft_slo"), (TPOT, "output tokens", "$tpot_slo"))
    for metric, what, le in kinds:
        about = About(
            f"In time: {what} within {le} s",
            "The share of requests within the limit, which is a boundary of the buckets: exact.",
            "percentunit",
            width=12,
        )
        yield lines(
            about, [Query(name, queries.attainment(metric, model, le)) for model, name in BOTH]
        )


def fairness() -> Iterator[Panel]:
    kinds = (
        ("Prompt length", "sleb_request_prompt_tokens", "short", "Tokens, mean."),
        (
            "Answer length",
            "sleb_request_generation_tokens",
            "short",
            "Tokens, mean. Shorter answers make whole requests faster, and nothing else.",
        ),
        (
            "Batch size",
            "sleb_request_batch_size",
            "short",
            "Sequences in a decode step, mean. Fuller batches take longer a token.",
        ),
        (
            "Queue time",
            "sleb_request_queue_time_seconds",
            "s",
            "Arrival to first forward, mean. It is part of the time to the first token.",
        ),
    )
    for title, metric, unit, text in kinds:
        means = [
            Query(name, queries.mean(metric, model, "$__rate_interval")) for model, name in BOTH
        ]
        yield lines(About(title, text, unit), means)
    for title, metric in (
        ("Prompt", "sleb_request_prompt_tokens"),
        ("Answer", "sleb_request_generation_tokens"),
    ):
        shares = [
            Query(f"p{share * 100:g} {name}", queries.quantile(share, metric, model))
            for share in (0.5, 0.95)
            for model, name in BOTH
        ]
        text = "Buckets are 1, 2, 5, 10, 20, 50 and so on: coarse."
        yield lines(About(f"{title} lengths, quantiles", text, "short"), shares)
    running = 'sum by (model_name) (sleb_num_requests_running{model_name=~"$dense|$pruned"})'
    yield lines(
        About("Running requests", "Of all kinds of traffic. Absent while not loaded.", "short"),
        [Query("{{model_name}}", running)],
    )
    tokens = [
        Query(name, f"sum(rate(sleb_generation_tokens_total{queries.of(model)}[$__rate_interval]))")
        for model, name in BOTH
    ]
    yield lines(About("Tokens per second", "Generated.", "short"), tokens)
