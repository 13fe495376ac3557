"""Metrics under vLLM's names too, for dashboards and autoscalers that were made for vLLM."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

_OWN, _VLLM = "sleb_", "vllm:"
_RUNNING, _CACHE = "num_requests_running", "kv_cache_usage_perc"
# Those with vLLM's meaning, units and boundaries (vLLM, docs/usage/metrics.md)
NAMES = frozenset(
    {
        _RUNNING, "num_requests_waiting", _CACHE, "num_preemptions", "prefix_cache_queries",
        "prefix_cache_hits", "prompt_tokens", "generation_tokens", "request_success",
        "time_to_first_token_seconds", "inter_token_latency_seconds",
        "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    }
)  # fmt: skip
_LABELS = ("model_name", "engine", "finished_reason", "le")  # those of vLLM


class RegistryWithVllmNames(CollectorRegistry):
    """Has every metric of ``NAMES`` twice; under vLLM's name, of live requests alone."""

    def collect(self) -> Iterable[Metric]:
        models: list[str] = []
        for metric in super().collect():
            yield metric
            name = metric.name.removeprefix(_OWN)
            if name == _RUNNING:
                models = [sample.labels["model_name"] for sample in metric.samples]
            if name in NAMES and metric.name != name:
                yield _renamed(metric, name, models)


def _renamed(metric: Metric, name: str, models: Iterable[str]) -> Metric:
    """The models share one cache; vLLM has one for its only model."""
    found = Metric(f"{_VLLM}{name}", metric.documentation, metric.type)
    for sample in metric.samples:
        labels = [{"model_name": model} for model in models] if name == _CACHE else [sample.labels]
        found.samples += [_sample(sample, each) for each in labels if _is_live(each)]
    return found


def _is_live(labels: Mapping[str, str]) -> bool:
    return labels.get("traffic", "live") == "live"


def _sample(sample: Sample, labels: Mapping[str, str]) -> Sample:
    kept = {name: labels[name] for name in _LABELS if name in labels}
    return sample._replace(name=f"{_VLLM}{sample.name.removeprefix(_OWN)}", labels=kept)
