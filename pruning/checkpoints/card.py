"""The model card of a checkpoint: its README.md, with the metadata that model hubs read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from huggingface_hub import EvalResult

from pruning.checkpoints.card_metadata import (
    card_head,
    domain_results,
    measured_of,
    perplexity_results,
    probe_results,
)
from pruning.checkpoints.card_sections import (
    advice_section,
    healed_by,
    samples_section,
    tasks_section,
    training_lines,
)
from pruning.checkpoints.domain_tables import (
    depth_table,
    domain_table,
    explained,
    narrow_table,
    with_interval,
)
from pruning.checkpoints.markdown import bullets, markdown_table
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import legend, probe_line, rows, table
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.evaluation.quality import (
    DomainAtDepth,
    DomainQuality,
    Interval,
    Perplexity,
    text_of,
)
from pruning.evaluation.results import ProbeComparison
from pruning.extras import has_extra
from pruning.healing.record import Healing
from pruning.models.lineage import Lineage
from pruning.plural import counted
from pruning.removal import Removal
from pruning.repair.record import Method
from pruning.spec.prune import Metric, PruneSpec, Quantize, Resident, Search

_LOADING = """\
This is a regular Hugging Face model:

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
```

vLLM needs no override, because the config has the number of remaining blocks:
`vllm serve path/to/this/directory`. For llama.cpp, convert it with
`sleb export path/to/this/directory --gguf model.gguf`. Where that does not support the model, it
says whether llama.cpp's own `convert_hf_to_gguf.py` is safe, which it is not for every family.

## Lineage and licence

{lineage}
"""
_CARD = """\
{head}
{it.parent} without {num_removed} of its {it.num_blocks} transformer blocks, chosen by {metric}
(arXiv 2402.09025), and {changed}: {it.num_parameters:,} of {it.dense_num_parameters:,} parameters
remain.{dtypes}

{loading}
{advice}
## Quality after each removal

{plot}{table}

{legend}

{domains}
## Search

{search}
Calibration: {source}, {windows} of {seqlen} tokens
(sha256 of the token ids `{digest}`).

Low perplexity does not prove that the model can still reason: evaluate it on your own task.
`removal.json` contains the score of every candidate in every round, `calibration.json` the first
words of each window, and `manifest.json` the lineage.
"""
_PLOT = f"""\
![Perplexity by number of removed blocks, and a map of all blocks]({PLOT_FILE})

"""
_EXPORT = """\
{head}
{it.parent} {kept} {it.num_blocks} transformer blocks{changed}, in {it.dtype}.
{quality}{speed}{quantized}
{loading}"""
_QUALITY = """
Quality, as measured when the blocks were chosen:

{table}

{legend}
"""
_SPEED = """
Times per token, dense over pruned:

{table}

- predicted: by the times of embeddings, blocks and head on the machine that chose the blocks.
- measured: on the machine of the export, by `sleb bench` or `sleb compare`, with its 95 % interval.
"""
_QUANTIZED = """
The matrices in blocks are rounded to {bits}, symmetric, with a scale for each {group}, in
the compressed-tensors format. Embeddings, norms and head are in {dtype}. Perplexity before, and of
these files as transformers loads them:

{table}
"""
_GROUPS: Mapping[Quantize, str] = {
    Quantize.INT8: "output",
    Quantize.INT4: "group of at most 128 inputs",
}
_METRICS: Mapping[Metric, str] = {
    Metric.COSINE: "the cosine similarity of their input and output",
    Metric.ONE_SHOT: "the loss of the dense model without each of them",
    Metric.SLEB: "SLEB",
    Metric.KL: "SLEB with the divergence from the dense model in place of the loss",
}
_CHANGED: Mapping[Method, str] = {
    Method.NONE: "otherwise unchanged",
    Method.SCALE: "repaired by scales of the hidden states",
    Method.RIDGE: "repaired by least squares",
}
_VALUES: Mapping[Method, str] = {
    Method.NONE: "all weights have the parent's values, in the dtype of the files",
    Method.SCALE: "what blocks behind removed ones add to the hidden states was multiplied by "
    "constants; all other weights have the parent's values, in the dtype of the files",
    Method.RIDGE: "matrices of the blocks in front of and behind removed ones, with the norms "
    "that follow them, were fitted anew by least squares; all other weights have the parent's "
    "values, in the dtype of the files",
}
_UNKNOWN = Lineage()
_EXACT = "every candidate was evaluated on all calibration windows"
_STAGED = "candidates that were clearly worse on the first calibration windows skipped the others"
_STREAMED = ", block weights streamed from disk"


_DOMAINS = """
## Quality by domain

{table}

{legend}

{depths}
"""


def model_card(
    manifest: Manifest, removals: Sequence[Removal] = (), lineage: Lineage = _UNKNOWN
) -> str:
    """Return the card of a published checkpoint. ``removals`` add the margin of each round."""
    trajectory = rows(manifest, removals)
    headings, cells = table(trajectory)
    spec = PruneSpec.from_dict(manifest.spec)
    search = _STAGED if spec.search is Search.STAGED else _EXACT
    streamed = _STREAMED if spec.resident is Resident.STREAM else ""
    repair = manifest.repaired_by
    return _CARD.format(
        it=manifest,
        head=card_head(manifest.name, manifest.parent, lineage, measured_of(manifest.quality)),
        loading=_loading(manifest, repair, lineage),
        changed=_CHANGED[repair]
        if manifest.healing is None
        else healed_by(manifest.healing, _CHANGED),
        num_removed=len(manifest.removed_blocks),
        metric=_METRICS[spec.metric],
        dtypes=_dtypes(manifest, spec),
        advice=advice_section(manifest),
        plot=_PLOT if has_extra("plots") else "",
        table=markdown_table(headings, cells),
        legend=bullets(legend(manifest, headings, trajectory)),
        domains="".join(
            (
                _domains(manifest.quality.domains),
                tasks_section(manifest),
                samples_section(manifest),
            )
        ),
        search=f"Search: {spec.search}, {search}{streamed}.",
        windows=counted(manifest.calibration["num_windows"], "window"),
        **manifest.calibration,
    )


def _dtypes(manifest: Manifest, spec: PruneSpec) -> str:
    """What differs from the parent: larger weights are no cheaper model. Empty if nothing does."""
    parent = manifest.parent_dtype
    computed = parent if spec.dtype == "auto" else spec.dtype
    if parent is None or (manifest.dtype == parent == computed):
        return ""
    if manifest.dtype == parent:
        return f" Computed in {computed}, and published in the parent's {parent}."
    return f" The weights are in {manifest.dtype}, where those of the parent are in {parent}."


@dataclass(frozen=True)
class QuantizedText:
    """Perplexity on one text, with plain weights and with the quantized ones that were loaded."""

    domain: str
    text: str  # with its windows
    plain: float
    quantized: float
    ratio: Interval

    @classmethod
    def of(cls, domain: str, plain: Perplexity, quantized: Perplexity) -> Self:
        assert quantized.ratio is not None
        text = text_of(plain.text, plain.num_windows, plain.seqlen)
        return cls(domain, text, plain.perplexity, quantized.perplexity, quantized.ratio)


@dataclass(frozen=True)
class Exported:
    """An exported model: its parent has ``num_blocks``, without ``removed_blocks`` here."""

    name: str
    parent: str
    num_blocks: int
    removed_blocks: Sequence[int]
    dtype: str
    repair: Method = Method.NONE
    quantized: Quantize | None = None
    perplexities: Sequence[QuantizedText] = ()  # of a quantized model
    predicted_speedup: float | None = None
    measured_speedup: Interval | None = None
    domains: Sequence[DomainAtDepth] = ()  # as the job has measured them
    probe: ProbeComparison | None = None
    healing: Healing | None = None


def export_card(exported: Exported, lineage: Lineage) -> str:
    """Return the card of an exported model, which has no manifest."""
    kept = "with all of its"
    if exported.removed_blocks:
        kept = f"without {len(exported.removed_blocks)} of its"
    return _EXPORT.format(
        it=exported,
        head=card_head(exported.name, exported.parent, lineage, _results(exported)),
        loading=_loading(exported, exported.repair, lineage),
        changed=_changed(exported),
        kept=kept,
        quality=_measured(exported),
        speed=_speed(exported),
        quantized=_quantized(exported),
    )


def _results(exported: Exported) -> list[EvalResult]:
    """Those of the files: their quantized weights, or else what the job has measured."""
    if exported.perplexities:
        return [
            result
            for one in exported.perplexities
            for result in perplexity_results(
                one.domain, one.text, one.quantized, one.ratio.value, "plain weights"
            )
        ]
    return [*domain_results(exported.domains), *probe_results(exported.probe)]


def _changed(exported: Exported) -> str:
    """How the blocks that stay were changed, if they were."""
    if exported.healing is not None:
        return f", {healed_by(exported.healing, _CHANGED)}"
    return f", {_CHANGED[exported.repair]}" if exported.repair is not Method.NONE else ""


def _measured(exported: Exported) -> str:
    """The quality by domain, and the probe. Nothing if no domain was measured."""
    if not exported.domains:
        return ""
    headings, rows = narrow_table(exported.domains)
    legend = [*explained(exported.domains), *probe_line(exported.probe)]
    return _QUALITY.format(table=markdown_table(headings, rows), legend=bullets(legend))


def _speed(exported: Exported) -> str:
    """Nothing if neither speed-up is known."""
    predicted, measured = exported.predicted_speedup, exported.measured_speedup
    if predicted is None and measured is None:
        return ""
    row = (
        str(exported.num_blocks - len(exported.removed_blocks)),
        "not predicted" if predicted is None else f"{predicted:.2f}",
        "not measured" if measured is None else with_interval(measured),
    )
    return _SPEED.format(table=markdown_table(("blocks", "predicted", "measured"), [row]))


def _quantized(exported: Exported) -> str:
    """Nothing for plain weights."""
    if exported.quantized is None:
        return ""
    rows = [
        (one.text, f"{one.plain:.3f}", f"{one.quantized:.3f}", with_interval(one.ratio))
        for one in exported.perplexities
    ]
    return _QUANTIZED.format(
        bits=exported.quantized.value,
        group=_GROUPS[exported.quantized],
        dtype=exported.dtype,
        table=markdown_table(("text", "before", "quantized", "ratio"), rows)
        if rows
        else "not measured.",
    )


def _domains(domains: Sequence[DomainQuality]) -> str:
    """The full depth, and then each depth of each domain. Nothing if no domain was measured."""
    if not domains:
        return ""
    depths = (f"{one.domain}:\n\n{markdown_table(*domain_table(one))}" for one in domains)
    return _DOMAINS.format(
        table=markdown_table(*depth_table(domains, len(domains[0].raw))),
        legend=bullets(explained(domains)),
        depths="\n\n".join(depths),
    )


def _loading(model: Manifest | Exported, repair: Method, lineage: Lineage) -> str:
    lines = [*_lineage(model, repair, lineage)]
    if lineage.tower:
        lines.append(f"- The language tower of this {lineage.tower} alone has lost blocks.")
    auto = "AutoModelForImageTextToText" if lineage.tower else "AutoModelForCausalLM"
    return _LOADING.format(lineage="\n".join(lines), auto=auto)


def _lineage(model: Manifest | Exported, repair: Method, lineage: Lineage) -> Iterator[str]:
    parent = model.parent
    said = lineage.provenance
    source = f" ({said.name})" if said.name else ""
    source += f", from {lineage.source}" if lineage.source else ""
    source += f" at commit {lineage.commit}" if lineage.commit else ""
    source += f", {lineage.conversion}" if lineage.conversion else ""
    yield f"- Parent: {parent}{source}, with {counted(model.num_blocks, 'block')}."
    if model.removed_blocks:
        order = ", ".join(map(str, model.removed_blocks))
        yield f"- Removed blocks, counted from 0, in order of removal: {order}."
    if model.healing is None:
        yield f"- No training: {_VALUES[repair]}."
    else:
        yield from training_lines(parent, model.healing)
    text = ", see LICENSE" if lineage.has_licence_text else ""
    named = f" ({said.licence_name or said.licence})" if said.licence else ""
    yield f"- The licence is that of {parent}{named}{text}."
