"""The README.md of a published checkpoint, in the form model hubs read."""

from pruning.checkpoints import Manifest

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
base_model: {parent}
base_model_relation: finetune
tags: [sleb, depth-pruning]
---

# {name}

{parent} without {num_removed} of its {num_blocks} transformer blocks, chosen by SLEB
(arXiv 2402.09025) and otherwise unchanged: {num_parameters:,} of {dense_num_parameters:,}
parameters are left. The licence is that of {parent}.

It is a plain Hugging Face model:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
```

## What each removal cost

| blocks removed | block | loss on calibration text (nats/token) | perplexity on held-out text |
|--:|--:|--:|--:|
{rows}

Calibration: {source}, {num_windows} windows of {seqlen} tokens
(sha256 of the token ids `{digest}`).
Held-out text: {evaluated_on}.

Low perplexity does not prove that reasoning survived: try the model on your own task.
`removal.json` holds every candidate's loss in every round, `manifest.json` the lineage.
"""


def model_card(manifest: Manifest) -> str:
    quality = manifest.quality
    rows = []
    for num_removed, loss in enumerate(quality.losses):
        block = manifest.removed_blocks[num_removed - 1] if num_removed else "none"
        perplexity = f"{quality.perplexities[num_removed]:.3f}" if quality.perplexities else "-"
        rows.append(f"| {num_removed} | {block} | {loss:.4f} | {perplexity} |")
    return _CARD.format(
        name=manifest.name,
        parent=manifest.parent,
        num_removed=len(manifest.removed_blocks),
        num_blocks=manifest.num_blocks,
        num_parameters=manifest.num_parameters,
        dense_num_parameters=manifest.dense_num_parameters,
        rows="\n".join(rows),
        evaluated_on=quality.evaluated_on or "none was evaluated",
        **manifest.calibration,
    )
