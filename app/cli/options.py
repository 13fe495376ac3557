"""Calibration texts as they are written on a command line."""

from collections.abc import Sequence

from pruning.spec.calibration import Calibration, CalibrationMix, CalibrationSpec, Dataset, Sampling


def calibration_of(
    texts: Sequence[str], sampling: Sampling, num_samples: int, seqlen: int, seed: int
) -> Calibration:
    """Of one text or several, each with a weight behind ``=``, or else of weight 1.

    Raises ``InvalidSpec``.
    """
    named = [_weighted(text) for text in texts]
    sources = [source_of(name, sampling, num_samples, seqlen, seed) for name, _ in named]
    mix = CalibrationMix(tuple(sources), tuple(weight for _, weight in named))
    return mix if len(sources) > 1 else sources[0]


def source_of(
    text: str, sampling: Sampling, num_samples: int, seqlen: int, seed: int
) -> CalibrationSpec:
    """``text`` names a data set, or else a file."""
    is_named = text in set(Dataset) - {Dataset.FILE}
    dataset = Dataset(text) if is_named else Dataset.FILE
    path = None if is_named else text
    return CalibrationSpec(dataset, sampling, num_samples, seqlen, seed, path)


def _weighted(text: str) -> tuple[str, float]:
    """What is no number behind the last ``=`` belongs to the name."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0
