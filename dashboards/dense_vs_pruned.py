"""The dashboard "Dense vs pruned": speed-ups, latencies, fairness of the comparison, quality."""

from collections.abc import Iterator, Sequence

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from dashboards import queries
from dashboards.cache import cache_row
from dashboards.fairness import BOTH, fairness, quantiles_of, service_level
from dashboards.frame import Panel, annotation, board, datasource, one_of, values_of
from dashboards.panels import (
    About,
    Query,
    buckets_over_time,
    lines,
    rows,
    stat_panel,
)
from dashboards.quality import quality_row
from dashboards.queries import DENSE, E2E, ITL, PRUNED, TPOT, TTFT

_BLOCKS = "max(sleb_model_num_blocks{{model_name={}}})"
_IDEAL = f"{_BLOCKS.format(DENSE)} / {_BLOCKS.format(PRUNED)}"
_GAIN_STEPS = ((0.0, "red"), (1.0, "green"))
_UNPAIRED = (
    "The two models do not get the same requests: check the row on fairness, and compare with the "
    "paired speed-up in the row on quality."
)


def dense_vs_pruned() -> Dashboard:
    pruned = 'label_values(sleb_model_info{parent="$dense"}, model_name)'
    found = (
        board("sleb-dense-vs-pruned", "Dense vs pruned")
        .with_variable(datasource())
        .with_variable(
            values_of("dense", "Dense", 'label_values(sleb_model_info{parent!=""}, parent)')
        )
        .with_variable(values_of("pruned", "Pruned", pruned))
        .with_variable(one_of("traffic", "Traffic", ["live", "shadow", "bench"]))
        .with_variable(
            one_of("ttft_slo", "TTFT SLO (s)", ["0.5", "0.1", "0.25", "1.0", "2.5", "5.0"])
        )
        .with_variable(
            one_of("tpot_slo", "TPOT SLO (s)", ["0.05", "0.01", "0.025", "0.075", "0.1"])
        )
        .annotation(annotation("shutdown", "sleb_draining == 1", "orange"))
        .annotation(
            annotation("job done", 'changes(sleb_prune_jobs{state="succeeded"}[1m]) > 0', "green")
        )
    )
    sections = (
        ("Overview", _overview()),
        ("Latency distribution", _distribution()),
        ("Service level", service_level()),
        ("Fairness of the comparison", fairness()),
        ("Keys and values", cache_row()),
        ("Quality", quality_row()),
    )
    for title, panels in sections:
        found.with_row(Row(title))
        for panel in panels:
            found.with_panel(panel)
    return found


def _overview() -> Iterator[Panel]:
    kinds = (
        (TPOT, "Speed-up of time per output token", "Mean of dense over mean of pruned."),
        (TTFT, "Speed-up of time to first token", "Mean of dense over mean of pruned."),
        (E2E, "Speed-up of end-to-end latency", "Mean of dense over mean of pruned."),
    )
    for metric, title, text in kinds:
        about = About(title, f"{text} {_UNPAIRED}", "suffix:×", decimals=2)
        yield stat_panel(about, _with_counts(metric), _GAIN_STEPS)
    measured = queries.speedup(TPOT)
    yield stat_panel(
        About(
            "Measured and ideal speed-up",
            "The speed-up of time per output token. The ideal is the ratio of blocks; the measured "
            "one is lower because embeddings, head and the work around the model are not pruned.",
            "suffix:×",
            decimals=2,
        ),
        [
            Query("measured", measured),
            Query("ideal", _IDEAL),
            Query(
                "share of the ideal gain", f"({measured} - 1) / ({_IDEAL} - 1)", "percentunit", 0
            ),
        ],
    )
    yield from _cost()
    yield _over_time()


def _cost() -> Iterator[Panel]:
    yield _perplexity()
    yield _memory()
    text = "Parents, removed blocks and jobs of the two models."
    info = "max by (model_name, parent, num_blocks, removed_blocks, job_id, dtype) "
    info += '(sleb_model_info{model_name=~"$dense|$pruned"})'
    about = About("Lineage", text, "none", "unknown", width=12)
    yield rows(about, Query("", info), hidden=["Value"])


def _perplexity() -> Panel:
    dense, pruned = (
        f"max({metric}{{model_name={PRUNED}}})"
        for metric in ("sleb_model_dense_perplexity", "sleb_model_perplexity")
    )
    text = (
        "Of both models on the same held-out windows of the job that found the removal order. The "
        "label text of these metrics names them, and the row on quality has each domain."
    )
    return stat_panel(
        About("Perplexity", text, "none", "not measured", decimals=2),
        [
            Query("$dense", dense),
            Query("$pruned", pruned),
            Query("pruned over dense", f"{pruned} / {dense}", "suffix:×", 2),
        ],
    )


def _memory() -> Panel:
    dense, pruned = (
        f"max(sleb_model_parameter_bytes{{model_name={model}}})" for model in (DENSE, PRUNED)
    )
    text = (
        "Memory for weights if the pruned model is served alone. Beside its dense parent it shares "
        "the weights of the parent."
    )
    return stat_panel(
        About("Memory saved", text, "bytes", "unknown"),
        [
            Query("saved", f"{dense} - {pruned}"),
            Query("$pruned", pruned),
            Query("share", f"({dense} - {pruned}) / {dense}", "percentunit", 0),
        ],
    )


def _over_time() -> Panel:
    selector = '{model_name="$pruned",traffic="$traffic"}'
    return lines(
        About(
            "Speed-ups over time",
            "Ratios of means over five minutes, from the recording rules.",
            "suffix:×",
            width=24,
            decimals=2,
        ),
        [
            Query("time per output token", f"sleb:tpot_speedup:ratio5m{selector}"),
            Query("time to first token", f"sleb:ttft_speedup:ratio5m{selector}"),
            Query("end-to-end latency", f"sleb:e2e_speedup:ratio5m{selector}"),
            Query("ideal", 'sleb:ideal_speedup:ratio{model_name="$pruned"}'),
        ],
    )


def _with_counts(metric: str) -> Sequence[Query]:
    counts = [
        Query(f"requests, {name}", queries.num_requests(metric, model), "short", 0)
        for model, name in BOTH
    ]
    return [Query("speed-up", queries.speedup(metric)), *counts]


def _distribution() -> Iterator[Panel]:
    for metric, title in (
        (TPOT, "Time per output token"),
        (ITL, "Inter-token latency"),
        (TTFT, "Time to first token"),
        (E2E, "End-to-end latency"),
    ):
        text = "Quantiles are accurate to a bucket of the histogram: 10 %."
        shares = (0.5, 0.95, 0.99)
        yield lines(About(title, text, "s", width=12, height=9), quantiles_of(metric, shares))
    for model, name in BOTH:
        text = "Number of requests in each bucket of the histogram."
        counts = f"sum by (le) (increase({TPOT}_bucket{queries.of(model)}[$__rate_interval]))"
        about = About(f"Time per output token, {name}", text, "s", width=12)
        yield buckets_over_time(about, Query("{{le}}", counts))
    yield _quantile_speedups()


def _quantile_speedups() -> Panel:
    ratios = [
        Query(
            f"p{share * 100:g}",
            f"{queries.quantile(share, TPOT, DENSE)} / {queries.quantile(share, TPOT, PRUNED)}",
        )
        for share in (0.5, 0.95, 0.99)
    ]
    text = (
        "Each quantile may be off by a bucket, 10 %, so a ratio may be off by 20 %. The ratios of "
        "means above are exact."
    )
    title = "Speed-up of quantiles of time per output token"
    return lines(About(title, text, "suffix:×", width=24), ratios)
