"""The row on quality: agreement and speed of shadow traffic, the probe, finish reasons."""

from collections.abc import Iterator

from dashboards import queries
from dashboards.frame import Panel
from dashboards.panels import About, Query, lines, rows, stat_panel
from dashboards.queries import DENSE, PRUNED

_PAIR = 'live_model=~"$dense|$pruned",shadow_model=~"$dense|$pruned"'
_LIVE = 'live_model=~"$dense|$pruned"'
_NO_PAIRS = "no shadow traffic"
_ABOUT_PAIRS = "A share of live requests (SLEB_SHADOW_SHARE) is replayed on both models."
_ABOUT_CONTROL = (
    "The noise floor is what a model reads over itself, in controls of the same kind. A speed-up "
    "that overlaps it has no verdict."
)


def quality_row() -> Iterator[Panel]:
    yield _agreement()
    yield _paired_speedup()
    yield _pairs()
    yield _probe()
    yield _noise_floor()
    yield _verdicts()
    yield from _domains()
    yield _agreement_over_time()
    yield _length_ratio()
    for model, name in ((DENSE, "$dense"), (PRUNED, "$pruned")):
        yield _finish_reasons(model, name)


def _agreement() -> Panel:
    total = f"sum(rate(sleb_shadow_agreement_ratio_count{{{_PAIR}}}[$__range]))"
    differing = f'sum(rate(sleb_shadow_agreement_ratio_bucket{{{_PAIR},le="0.99"}}[$__range]))'
    mean = f"sum(rate(sleb_shadow_agreement_ratio_sum{{{_PAIR}}}[$__range])) / {total}"
    floor = (
        f"sum(rate(sleb_shadow_floor_agreement_ratio_sum{{{_LIVE}}}[$__range]))"
        f" / sum(rate(sleb_shadow_floor_agreement_ratio_count{{{_LIVE}}}[$__range]))"
    )
    text = (
        "Equal tokens before the first difference, over the longer output. The floor is the "
        f"agreement of an output with its replay on the same model. {_ABOUT_PAIRS}"
    )
    return stat_panel(
        About("Agreement", text, "percentunit", _NO_PAIRS, decimals=1),
        [
            Query("mean", mean),
            Query("floor", floor),
            Query("equal outputs", f"1 - {differing} / {total}"),
        ],
    )


def _paired_speedup() -> Panel:
    def ratio(metric: str) -> str:
        dense, pruned = (
            f'sum(rate({metric}_sum{{{_PAIR},variant="{side}"}}[$__range]))'
            for side in ("dense", "pruned")
        )
        return f"{dense} / {pruned}"

    pairs = f'sum(increase(sleb_shadow_tpot_seconds_count{{{_PAIR},variant="pruned"}}[$__range]))'
    text = (
        "Replays of the same requests, each alone in the engine, which read every prompt in full. "
        f"{_ABOUT_PAIRS}"
    )
    return stat_panel(
        About("Paired speed-up", text, "suffix:×", _NO_PAIRS, decimals=2),
        [
            Query("time per output token", ratio("sleb_shadow_tpot_seconds")),
            Query("prefill time", ratio("sleb_shadow_prefill_seconds")),
            Query("pairs", pairs, "short", 0),
        ],
        ((0.0, "red"), (1.0, "green")),
    )


def _pairs() -> Panel:
    done = f"sum(increase(sleb_shadow_done_total{{{_PAIR}}}[$__range]))"
    controls, dropped = (
        f"sum(increase(sleb_shadow_{what}_total{{{_LIVE}}}[$__range]))"
        for what in ("control_done", "dropped")
    )
    return stat_panel(
        About(
            "Replays", f"{_ABOUT_PAIRS} Live requests come first.", "short", _NO_PAIRS, decimals=0
        ),
        [Query("compared", done), Query("controls", controls), Query("dropped", dropped)],
    )


def _noise_floor() -> Panel:
    def bound(metric: str, labels: str, name: str, how: str) -> str:
        return f'{how}(sleb_shadow_{metric}{{{labels},time="tpot",bound="{name}"}})'

    text = f"Of the last pairs of each process, with intervals of 95 %. {_ABOUT_CONTROL}"
    about = About(
        "Paired speed-up of time per output token, and its noise floor",
        text,
        "suffix:×",
        _NO_PAIRS,
        width=12,
        decimals=2,
    )
    ends = (("low", "from", "min"), ("high", "to", "max"))
    pairs = [
        Query(f"speed-up, {word}", bound("speedup", _PAIR, name, how)) for name, word, how in ends
    ]
    floor = [
        Query(f"noise floor, {word}", bound("control_speedup", _LIVE, name, how))
        for name, word, how in ends
    ]
    return lines(about, [*pairs, *floor])


def _verdicts() -> Panel:
    by = "live_model, shadow_model, time, verdict"
    expr = f"max by ({by}) (sleb_shadow_verdict{{{_PAIR}}} == 1)"
    text = f"By the last pairs of each process. {_ABOUT_CONTROL}"
    about = About("Verdicts on paired speed-ups", text, "short", _NO_PAIRS, width=12)
    return rows(about, Query("", expr), hidden=["Value"])


def _probe() -> Panel:
    return stat_panel(
        About(
            "Probe",
            "Score in the probe of the quality gate, for jobs that have such a gate.",
            "percentunit",
            "not measured",
            decimals=1,
        ),
        [
            Query(name, f"max({metric}{{model_name={PRUNED}}})")
            for name, metric in (
                ("$dense", "sleb_model_dense_probe_score"),
                ("$pruned", "sleb_model_probe_score"),
            )
        ],
    )


def _domains() -> Iterator[Panel]:
    """Held-out perplexity by domain of text, pruned over dense."""

    def by(labels: str, of: str) -> str:
        return f"max by ({labels}) (sleb_model_domain_{of}{{model_name={PRUNED}}})"

    ratio = "{} / {}".format(*(by("domain, text", f"{of}perplexity") for of in ("", "dense_")))
    text = "On the same held-out windows, measured by the job that found the removal order."
    about = About(
        "Perplexity by domain, pruned over dense", text, "suffix:×", "not measured", 12, decimals=2
    )
    yield rows(about, Query("", ratio), hidden=[])
    yield stat_panel(
        About(
            "Intervals of pruned over dense perplexity",
            f"95 %, from differences to the dense model window by window. {text}",
            "suffix:×",
            "not measured",
            12,
            decimals=2,
        ),
        [
            Query(f"{{{{domain}}}}, {name}", by("domain", f"perplexity_ratio_{end}"))
            for name, end in (("from", "low"), ("to", "high"))
        ],
    )


def _agreement_over_time() -> Panel:
    return lines(
        About("Agreement over time", _ABOUT_PAIRS, "percentunit", _NO_PAIRS, width=12),
        [
            Query(f"{name}, {{{{live_model}}}}", f"sleb:shadow_agreement:mean{window}{{{_PAIR}}}")
            for window, name in (("30m", "30 minutes"), ("1d", "1 day"))
        ]
        + [
            Query(
                "floor of 1 day, {{live_model}}", f"sleb:shadow_floor_agreement:mean1d{{{_LIVE}}}"
            )
        ],
    )


def _length_ratio() -> Panel:
    shadow, live = (
        f'sum(rate(sleb_shadow_answer_tokens_total{{{_PAIR},variant="{side}"}}[$__rate_interval]))'
        for side in ("pruned", "dense")
    )
    text = f"Output tokens of pairs, pruned over dense. {_ABOUT_PAIRS}"
    about = About("Ratio of output lengths", text, "suffix:×", _NO_PAIRS, width=12, decimals=2)
    return lines(about, [Query("pruned over dense", f"{shadow} / {live}")])


def _finish_reasons(model: str, name: str) -> Panel:
    ended = f"rate(sleb_request_success_total{queries.of(model)}[$__rate_interval])"
    share = f"sum by (finished_reason) ({ended}) / on () group_left () sum({ended})"
    text = "A pruned model that no longer ends its outputs has a higher share of length."
    about = About(f"Finish reasons, {name}", text, "percentunit", width=12)
    return lines(about, [Query("{{finished_reason}}", share)], is_stacked=True)
