"""The dashboard "Dense vs pruned": is it faster, for all, is that fair, what did it cost."""

from collections.abc import Iterator, Sequence

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from dashboards import queries
from dashboards.fairness import BOTH, fairness, service_level
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
    "Nobody sends the same requests to both: look at the row on fairness, and at pairs, before "
    "you believe it."
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
        ("Verdict", _verdict()),
        ("Distribution", _distribution()),
        ("Service level", service_level()),
        ("Fairness: were the requests alike?", fairness()),
        ("Quality", quality_row()),
    )
    for title, panels in sections:
        found.with_row(Row(title))
        for panel in panels:
            found.with_panel(panel)
    return found


def _verdict() -> Iterator[Panel]:
    kinds = (
        (TPOT, "Speed-up per output token", "Mean time per output token, dense over pruned."),
        (TTFT, "Speed-up to the first token", "Mean time to the first token, dense over pruned."),
        (E2E, "Speed-up of whole requests", "Mean latency of requests, dense over pruned."),
    )
    for metric, title, text in kinds:
        about = About(title, f"{text} {_UNPAIRED}", "suffix:×", decimals=2)
        yield stat_panel(about, _with_counts(metric), _GAIN_STEPS)
    measured = queries.speedup(TPOT)
    yield stat_panel(
        About(
            "Measured against ideal",
            "Ideal is blocks over blocks. Embeddings, head and everything around the model are not "
            "pruned, so that less is to be expected.",
            "suffix:×",
            decimals=2,
        ),
        [
            Query("measured", measured),
            Query("ideal", _IDEAL),
            Query("share of the gain", f"({measured} - 1) / ({_IDEAL} - 1)", "percentunit", 0),
        ],
    )
    yield from _cost()
    yield _over_time()


def _cost() -> Iterator[Panel]:
    its = f"model_name={PRUNED}"
    dense = f"max(sleb_model_dense_perplexity{{{its}}})"
    pruned = f"max(sleb_model_perplexity{{{its}}})"
    yield stat_panel(
        About(
            "Perplexity",
            "On the held-out text of the job that found the order: both on the same text.",
            "none",
            "not measured",
            decimals=2,
        ),
        [
            Query("$dense", dense),
            Query("$pruned", pruned),
            Query("pruned over dense", f"{pruned} / {dense}", "suffix:×", 2),
        ],
    )
    weights = "max(sleb_model_parameter_bytes{{model_name={}}})"
    saved = f"{weights.format(DENSE)} - {weights.format(PRUNED)}"
    yield stat_panel(
        About(
            "Memory saved",
            "Of weights, once the pruned model is served alone. Beside its dense parent it takes "
            "none of its own.",
            "bytes",
            "not counted",
        ),
        [
            Query("saved", saved),
            Query("$pruned", weights.format(PRUNED)),
            Query("share", f"({saved}) / {weights.format(DENSE)}", "percentunit", 0),
        ],
    )
    about = About("Lineage", "What is known of the two.", "none", "unknown", width=12)
    info = "max by (model_name, parent, num_blocks, removed_blocks, job_id, dtype) "
    info += '(sleb_model_info{model_name=~"$dense|$pruned"})'
    yield rows(about, Query("", info), hidden=["Value"])


def _over_time() -> Panel:
    its = '{model_name="$pruned",traffic="$traffic"}'
    return lines(
        About(
            "Speed-ups over time",
            "Ratios of means over five minutes each, as recorded by the rules.",
            "suffix:×",
            width=24,
            decimals=2,
        ),
        [
            Query("per output token", f"sleb:tpot_speedup:ratio5m{its}"),
            Query("first token", f"sleb:ttft_speedup:ratio5m{its}"),
            Query("whole request", f"sleb:e2e_speedup:ratio5m{its}"),
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
    kinds = (
        (TPOT, "Time per output token"),
        (ITL, "Between two tokens"),
        (TTFT, "Time to first token"),
        (E2E, "Whole requests"),
    )
    for metric, title in kinds:
        shares = [
            Query(f"p{share * 100:g} {name}", queries.quantile(share, metric, model))
            for share in (0.5, 0.95, 0.99)
            for model, name in BOTH
        ]
        text = "Quantiles are as fine as the buckets: 10 %."
        yield lines(About(title, text, "s", width=12, height=9), shares)
    for model, name in BOTH:
        about = About(f"Time per output token, {name}", "Requests by bucket.", "s", width=12)
        counts = f"sum by (le) (increase({TPOT}_bucket{queries.of(model)}[$__rate_interval]))"
        yield buckets_over_time(about, Query("{{le}}", counts))
    ratios = [
        Query(
            f"p{share * 100:g}",
            f"{queries.quantile(share, TPOT, DENSE)} / {queries.quantile(share, TPOT, PRUNED)}",
        )
        for share in (0.5, 0.95, 0.99)
    ]
    text = (
        "Each side may be off by a bucket, 10 %, and so a ratio by 20 %: the means above are not."
    )
    yield lines(
        About("Speed-up of quantiles, per output token", text, "suffix:×", width=24), ratios
    )
