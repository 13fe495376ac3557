"""The row on keys and values: prompts that were read before, pages in use, preemptions."""

from collections.abc import Iterator

from dashboards.fairness import BOTH
from dashboards.frame import Panel
from dashboards.panels import About, Query, lines

_MODELS = '{model_name=~"$dense|$pruned"}'


def cache_row() -> Iterator[Panel]:
    yield _hit_rate()
    text = "Share of all pages that running requests have. Others are free, or kept for prompts."
    usage = [Query("{{instance}}", "sleb_kv_cache_usage_perc")]
    yield lines(About("Pages in use", text, "percentunit"), usage)
    text = "Of running requests. A pruned model has fewer blocks, so a page of it is smaller."
    held = [Query("{{model_name}}", f"sum by (model_name) (sleb_kv_cache_bytes{_MODELS})")]
    yield lines(About("Keys and values", text, "bytes", "no running request"), held)
    text = (
        "Requests that left their pages to earlier ones, and are read again. Many of them cost "
        "time: see SLEB_KV_CACHE_BYTES and SLEB_MAX_NUM_SEQS."
    )
    rate = f"sum by (model_name) (rate(sleb_num_preemptions_total{_MODELS}[$__rate_interval]))"
    about = About("Preemptions per second", text, "short", decimals=2)
    yield lines(about, [Query("{{model_name}}", rate)])


def _hit_rate() -> Panel:
    def rate(counter: str, model: str) -> str:
        return f"sum(rate({counter}{{model_name={model}}}[$__rate_interval]))"

    text = (
        "Share of the tokens of prompts that were not read, because earlier requests had. Times "
        "to the first token of two models are comparable only where their hit rates are alike."
    )
    rates = [
        Query(
            name,
            f"{rate('sleb_prefix_cache_hits_total', model)}"
            f" / {rate('sleb_prefix_cache_queries_total', model)}",
        )
        for model, name in BOTH
    ]
    return lines(About("Hit rate of prompts", text, "percentunit"), rates)
