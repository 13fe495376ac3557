"""The metadata of a model card, which model hubs read: lineage and what was measured."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData

from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import DomainAtDepth, Quality
from pruning.evaluation.results import ProbeComparison
from pruning.models.lineage import Lineage
from pruning.plural import counted

_TAGS = ("sleb", "depth-pruning")
_DATA_SETS: Mapping[str, tuple[str, str | None]] = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "hellaswag": ("Rowan/hellaswag", None),
    "lambada_openai": ("EleutherAI/lambada_openai", "default"),
    "openbookqa": ("allenai/openbookqa", "main"),
    "piqa": ("ybisk/piqa", None),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
}
_DIGITS = 5  # of a value that was measured


def card_head(name: str, parent: str, lineage: Lineage, results: Iterable[EvalResult]) -> str:
    """The metadata and the title of the card of a model that was made of ``parent``."""
    said = lineage.provenance
    bases = [lineage.source] if lineage.source else [*said.base_models]
    task = "image-text-to-text" if lineage.tower else "text-generation"
    measured = [*results]
    for result in measured:
        result.task_type = task
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        base_model=(bases[0] if len(bases) == 1 else bases) or said.name or parent,
        base_model_relation="finetune",
        tags=[*_TAGS],
        license=said.licence,
        license_name=said.licence_name,
        license_link=said.licence_link,
        language=[*said.languages] or None,
        datasets=[*said.datasets] or None,
        model_name=name if measured else None,
        eval_results=measured or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n"


def measured_of(quality: Quality) -> Iterator[EvalResult]:
    """What was measured of the model without all of the removed blocks."""
    depth = quality.num_removed
    domains = [domain.at_depth(depth) for domain in quality.domains]
    yield from domain_results(domains)
    if not domains and quality.perplexities:
        dense, pruned = quality.perplexities[0], quality.perplexities[-1]
        yield from perplexity_results("text", quality.evaluated_on, pruned, pruned / dense)
    yield from probe_results(quality.probe)
    yield from task_results(quality.tasks)


def domain_results(domains: Sequence[DomainAtDepth]) -> Iterator[EvalResult]:
    """The perplexity of each domain as the model is published."""
    for domain in domains:
        served = domain.healed or domain.repaired or domain.raw
        yield from perplexity_results(
            domain.domain, domain.text, served.perplexity, served.ratio.value
        )


def perplexity_results(
    domain: str, text: str, value: float, ratio: float, to: str = "the dense model"
) -> Iterator[EvalResult]:
    yield _result(domain, text, "perplexity", "perplexity", value)
    yield _result(domain, text, "perplexity_ratio", f"ratio of perplexity to {to}", ratio)


def probe_results(probe: ProbeComparison | None) -> Iterator[EvalResult]:
    if probe is not None:
        yield _result("probe", "probe of sleb-serve", "accuracy", "score", probe.pruned.score)


def task_results(tasks: Iterable[PairedTask]) -> Iterator[EvalResult]:
    """The accuracy of each task, on the data set that the hub knows it by."""
    for task in tasks:
        kind, config = _DATA_SETS.get(task.task, (task.task, None))
        text = f"{task.task}, {counted(task.num_questions, 'question')}"
        result = _result(kind, text, "accuracy", task.metric, task.accuracy)
        result.dataset_config = config
        yield result


def _result(kind: str, text: str, metric: str, name: str, value: float) -> EvalResult:
    """The task is that of the card."""
    return EvalResult("", kind, text, metric, float(f"{value:.{_DIGITS}g}"), metric_name=name)
