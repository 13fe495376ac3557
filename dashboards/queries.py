"""PromQL expressions that several panels share."""

import re

DENSE, PRUNED = '"$dense"', '"$pruned"'

TPOT = "sleb_request_time_per_output_token_seconds"
TTFT = "sleb_time_to_first_token_seconds"
E2E = "sleb_e2e_request_latency_seconds"
ITL = "sleb_inter_token_latency_seconds"

_NAME = re.compile(r"\b(?:sleb_[a-z0-9_]+|sleb:[a-z0-9_:]+|up)\b(?!\()")


def of(model: str) -> str:
    """The selector of a model, which is in quotes, and of the selected kind of traffic."""
    return f'{{model_name={model},traffic="$traffic"}}'


def mean(metric: str, model: str, window: str = "$__range") -> str:
    """The mean of a histogram, which does not depend on its buckets; NaN without observations."""
    return (
        f"sum(rate({metric}_sum{of(model)}[{window}]))"
        f" / sum(rate({metric}_count{of(model)}[{window}]))"
    )


def speedup(metric: str, window: str = "$__range") -> str:
    """The mean of the dense model over that of the pruned model."""
    return f"({mean(metric, DENSE, window)}) / ({mean(metric, PRUNED, window)})"


def num_requests(metric: str, model: str) -> str:
    """The number of observations in the time range."""
    return f"sum(increase({metric}_count{of(model)}[$__range]))"


def quantile(share: float, metric: str, model: str, window: str = "$__rate_interval") -> str:
    """A quantile, accurate to a bucket of the histogram: a tenth for latencies."""
    rates = f"sum by (le) (rate({metric}_bucket{of(model)}[{window}]))"
    return f"histogram_quantile({share:g}, {rates})"


def attainment(metric: str, model: str, le: str) -> str:
    """The share of requests within the bucket boundary ``le``."""
    labels = of(model)
    within = f'{labels[:-1]},le="{le}"}}'
    return (
        f"sum(rate({metric}_bucket{within}[$__rate_interval]))"
        f" / sum(rate({metric}_count{labels}[$__rate_interval]))"
    )


def metrics_in(query: str) -> list[str]:
    """The names of all metrics and recorded series in a query, in order."""
    without_values = re.sub(r'"[^"]*"', '""', query)
    return list(dict.fromkeys(_NAME.findall(without_values)))
