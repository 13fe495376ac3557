"""The record of an exported model: its lineage, and the quality and speed that were measured.

It is no manifest of a checkpoint, which has the digests of its files and the whole removal order.
"""

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pruning.checkpoints.card import Exported

EXPORT_FILE = "sleb-export.json"
FORMAT = 1
_PREDICTED = "times of embeddings, blocks and head on the machine that chose the blocks"
_MEASURED = "sleb bench or sleb compare on the machine of the export"


def to_record(exported: Exported) -> dict[str, Any]:
    """JSON values. A speed-up names its source."""
    words = {**asdict(exported), "healing": None}
    if (healing := exported.healing) is not None:
        tokens = healing.run.best.num_tokens
        words["healing"] = {"checkpoint": healing.parent, "num_tokens": tokens}
    predicted, measured = words.pop("predicted_speedup"), words.pop("measured_speedup")
    return {
        "format": FORMAT,
        **words,
        "speedup": {
            "predicted": predicted and {"value": predicted, "source": _PREDICTED},
            "measured": measured and {**measured, "source": _MEASURED},
        },
        "versions": {name: version(name) for name in ("sleb-serve", "torch", "transformers")},
    }
