"""A search by a real worker that takes some seconds: time enough to disturb it."""

from pathlib import Path

from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.tiny_directory import write_tiny_model

NUM_REMOVE = 5
EVALUATIONS = 12 + 11 + 10 + 9 + 8


def long_search(data_dir: Path, num_samples: int = 128) -> PruneSpec:
    """On one thread, as the workers have it; the model and the text are written first.

    The time it takes is proportional to ``num_samples``: about 9 s for 128 on an idle core.
    """
    write_tiny_model(data_dir / "models" / "tiny", num_blocks=14)
    text = data_dir / "texts" / "text.txt"
    text.parent.mkdir()
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(9000)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=num_samples, seqlen=128, path=str(text))
    return PruneSpec("tiny", num_remove=NUM_REMOVE, calibration=calibration, evaluate=False)
