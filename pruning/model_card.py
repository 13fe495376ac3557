"""The README.md of a published checkpoint, in the form model hubs read."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pruning.checkpoints import Manifest
from pruning.removal import Removal
from pruning.spec import Metric, PruneSpec, Resident, Search
from pruning.trajectory import legend, rows, table
from pruning.trajectory_plot import PLOT_FILE

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
base_model: {parent}
base_model_relation: finetune
tags: [sleb, depth-pruning]
---

# {name}

{parent} without {num_removed} of its {num_blocks} transformer blocks, chosen by {metric}
(arXiv 2402.09025) and otherwise unchanged: {num_parameters:,} of {dense_num_parameters:,}
parameters are left. The licence is that of {parent}.

It is a plain Hugging Face model:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
```

## What each removal cost

![Perplexity against blocks removed, and a strip of all blocks]({plot})

{table}

{legend}

{search}
Calibration: {source}, {num_windows} windows of {seqlen} tokens
(sha256 of the token ids `{digest}`).

Low perplexity does not prove that reasoning survived: try the model on your own task.
`removal.json` holds every candidate's score in every round, `calibration.json` what each window
begins with, `manifest.json` the lineage.
"""
_METRICS: Mapping[Metric, str] = MappingProxyType(
    {
        Metric.COSINE: "the cosine similarity of input and output",
        Metric.ONE_SHOT: "the loss without each alone",
        Metric.SLEB: "SLEB",
    }
)
_EXACT = "every candidate was measured on all calibration windows"
_STAGED = "candidates that were clearly worse on some calibration windows were spared the others"
_STREAMED = ", block weights streamed from disk"


def model_card(manifest: Manifest, removals: Sequence[Removal] = ()) -> str:
    """``removals`` add to the table what the manifest does not say: how close each round was."""
    headings, cells = table(rows(manifest, removals))
    rule = ["--:"] * len(headings)
    spec = PruneSpec.from_dict(manifest.spec)
    search = _STAGED if spec.search is Search.STAGED else _EXACT
    streamed = _STREAMED if spec.resident is Resident.STREAM else ""
    return _CARD.format(
        name=manifest.name,
        parent=manifest.parent,
        num_removed=len(manifest.removed_blocks),
        num_blocks=manifest.num_blocks,
        num_parameters=manifest.num_parameters,
        dense_num_parameters=manifest.dense_num_parameters,
        metric=_METRICS[spec.metric],
        plot=PLOT_FILE,
        table="\n".join(f"| {' | '.join(line)} |" for line in [headings, rule, *cells]),
        legend="\n".join(f"- {text}" for text in legend(manifest, headings)),
        search=f"Search: {spec.search}, {search}{streamed}.",
        **manifest.calibration,
    )
