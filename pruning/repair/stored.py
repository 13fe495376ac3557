"""The repair of each depth as a file of its checkpoint: ``repair/depth-3.safetensors`` for the
model after three removals.

The folder keeps transformers and vLLM from taking the file for weights of the checkpoint. It has
the changed parameters by the names of the dense model, and the scales of the stream as metadata,
which ``folding`` turns into parameters.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pruning.repair.plan import Cut
from pruning.repair.record import Method, repair_file
from pruning.repair.repair import Repaired

_METHOD, _SCALES = "method", "scales"


class RepairUnreadable(ValueError):
    """The file of a repair is missing or is not what ``write_repair`` writes."""


def write_repair(directory: Path, num_removed: int, repaired: Repaired) -> None:
    """Write a repair into a checkpoint. A file without tensors and scales stands for none."""
    file = directory / repair_file(num_removed)
    file.parent.mkdir(exist_ok=True)
    scales = [[cut.before, cut.after, scale] for cut, scale in repaired.scales.items()]
    metadata = {_METHOD: repaired.method.value, _SCALES: json.dumps(scales)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in repaired.tensors.items()}
    save_file(tensors, file, metadata=metadata)


def read_repair(directory: Path, num_removed: int) -> Repaired:
    """The repair of a checkpoint at this depth, without losses and fits. Tensors are on the CPU.

    Raises ``RepairUnreadable``.
    """
    file = directory / repair_file(num_removed)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: Mapping[str, str] = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        scales = {
            Cut(before, after): float(scale)
            for before, after, scale in json.loads(metadata[_SCALES])
        }
        return Repaired(Method(metadata[_METHOD]), {}, tensors, scales)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RepairUnreadable(
            f"{file} has no readable repair: {error}; prune the model again"
        ) from error
