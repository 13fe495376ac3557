"""The text of a pruning run by domain: to choose blocks, to repair, to select and to evaluate."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.corpora import NOT_ENOUGH, CalibrationError
from pruning.data.model_text import Observe, unobserved
from pruning.data.sources import Source, Use, check_positions, max_positions, source_of
from pruning.data.windows import Windows, mixed, with_repeats
from pruning.spec.calibration import DEFAULT, PACKAGED, Calibration, CalibrationSpec, Dataset
from pruning.spec.evaluation import USUAL_TOKENS, Evaluation


@dataclass(frozen=True)
class RepairWindows:
    """Windows by domain to fit a repair on, and others to choose between repairs.

    ``train`` has every domain of the calibration. Its windows are those of the calibration and
    others, and every fourth repeats its first half.
    ``selection`` also has packaged prose and code, so that a repair that was fitted on one kind of
    text is judged on another. It lacks a domain whose text is too short for windows of its own. No
    window is in both, and all have one length.
    """

    train: Mapping[str, Windows]
    selection: Mapping[str, Windows]


def calibrate(
    spec: Calibration,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    observe: Observe = unobserved,
) -> Windows:
    """The windows that ``spec`` describes for this model. Raises ``CalibrationError``.

    ``observe`` follows the sampling of text from the model, as in ``sampled_text``.
    """
    sources = [(part.domain, source_of(part, model, tokenizer, observe)) for part in spec.parts]
    return mixed(
        [replace(source.windows(Use.CALIBRATION), domain=domain) for domain, source in sources]
    )


def held_out(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Windows:
    """Windows to evaluate on, as many of each source as the calibration takes, if there are.

    A corpus gives windows of its evaluation split, the model other text of its own, and a file its
    unused windows. A file without any gives the calibration windows again, and ``source`` says so.
    Raises ``CalibrationError``.
    """
    sources = [source_of(part, model, tokenizer) for part in spec.parts]
    return mixed([source.windows(Use.EVALUATION) for source in sources])


def repair_windows(
    spec: Calibration,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    observe: Observe = unobserved,
    use: Use = Use.REPAIR,
) -> RepairWindows:
    """Windows to fit and to select a repair on, with the sampling and seqlen of the calibration.

    There are 32 times as many to fit on as the calibration has, up to 32,768 tokens, and at least
    four times as many and 16 of each source; half as many to select on as the calibration has, and
    at least 4. Short texts give fewer, and the model itself writes four times as many. Another
    ``use`` has its own number of windows to fit on. Raises ``CalibrationError``.
    """
    sources = [(part.domain, source_of(part, model, tokenizer, observe)) for part in spec.parts]
    others = [(part.domain, source_of(part, model, tokenizer)) for part in _others(spec, DEFAULT)]
    train = _by_domain(sources, use)
    if use is Use.REPAIR:  # a training learns no more by them
        train = {domain: with_repeats(windows, tokenizer) for domain, windows in train.items()}
    return RepairWindows(
        train=train,
        selection=_by_domain([*sources, *others], Use.SELECTION),
    )


def healing_windows(
    spec: Calibration,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    observe: Observe = unobserved,
) -> RepairWindows:
    """All windows of the calibration's texts that may be trained on, and others to stop by.

    The latter are the selection windows of ``repair_windows``. Raises ``CalibrationError``, also if
    there are none.
    """
    windows = repair_windows(spec, model, tokenizer, observe, Use.HEALING)
    if not windows.train or not windows.selection:
        raise _nothing_to_stop_by(spec)
    return windows


def check_healable_text(
    spec: Calibration, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise ``CalibrationError`` if ``healing_windows`` of this text would."""
    parts = [*_others(spec, DEFAULT), *spec.parts]
    sources = (source_of(part, model, tokenizer) for part in parts)
    if not any(len(source.windows(Use.SELECTION).token_ids) for source in sources):
        raise _nothing_to_stop_by(spec)


def _nothing_to_stop_by(spec: Calibration) -> CalibrationError:
    return CalibrationError(
        NOT_ENOUGH,
        f"the text is too short: it gives no window of {spec.seqlen} tokens for "
        "training, or none for early stopping; add text, or reduce seqlen",
    )


def evaluation_windows(
    spec: Calibration,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    observe: Observe = unobserved,
    *,
    evaluation: Evaluation | None = None,
) -> dict[str, Windows]:
    """Held-out windows by domain, and of every packaged text beside the calibration's own.

    First are those of kinds that no fit and no choice of a repair sees, and their source says so.

    With an ``evaluation`` there are as many as it may need, in an order of which any first few
    represent all. Without one, ``held_out`` describes the windows of each source, and a packaged
    text that is in no calibration gives as many as the largest source. Raises ``CalibrationError``.
    """
    others = _others(spec, PACKAGED)
    unseen = [part.domain for part in others if part.dataset not in DEFAULT]
    parts = sorted([*spec.parts, *others], key=lambda part: part.domain not in unseen)
    sources = [(part.domain, source_of(part, model, tokenizer, observe)) for part in parts]
    windows = _evaluated(spec, sources, model, evaluation)
    return {
        name: replace(of, source=f"{of.source}, a kind that took no part") if name in unseen else of
        for name, of in windows.items()
    }


def _evaluated(
    spec: Calibration,
    sources: Sequence[tuple[str, Source]],
    model: PreTrainedModel,
    evaluation: Evaluation | None,
) -> dict[str, Windows]:
    if evaluation is None:
        return _by_domain(sources, Use.EVALUATION)
    if evaluation.seqlen is not None:
        check_positions(evaluation.seqlen, model, "evaluation.seqlen")
    pools = _usual_pools(spec, sources, model, evaluation)
    if pools is None:
        pools = _pools(sources, evaluation)
    return {name: all_of.first(evaluation.most_windows) for name, all_of in pools.items()}


def _pools(sources: Sequence[tuple[str, Source]], evaluation: Evaluation) -> dict[str, Windows]:
    return _mixed([(domain, source.pool(evaluation)) for domain, source in sources])


def _usual_pools(
    spec: Calibration,
    sources: Sequence[tuple[str, Source]],
    model: PreTrainedModel,
    evaluation: Evaluation,
) -> dict[str, Windows] | None:
    """Windows of the usual length. None if another one is asked for, the calibration has longer
    ones, or the model or a text has too little for it."""
    is_longer = evaluation.seqlen is None and spec.seqlen < USUAL_TOKENS <= max_positions(model)
    # It takes the model long to write windows several times as long.
    if not is_longer or any(part.dataset is Dataset.SELF for part in spec.parts):
        return None
    try:
        pools = _pools(sources, evaluation.as_measured(USUAL_TOKENS))
    except CalibrationError:  # a text that is split into windows of one length, or a short one
        return None
    is_enough = all(len(each.token_ids) >= evaluation.first_windows for each in pools.values())
    return pools if is_enough and len(pools) == len({name for name, _ in sources}) else None


def _others(spec: Calibration, datasets: Sequence[Dataset]) -> list[CalibrationSpec]:
    """Those packaged texts whose domain is not in the calibration, as sources of equal size."""
    domains = {part.domain for part in spec.parts}
    num_samples = max(part.num_samples for part in spec.parts)
    return [
        CalibrationSpec(dataset, num_samples=num_samples, seqlen=spec.seqlen)
        for dataset in datasets
        if dataset.value not in domains
    ]


def _by_domain(sources: Sequence[tuple[str, Source]], use: Use) -> dict[str, Windows]:
    """The windows of each domain that has any. Sources of one domain are mixed."""
    return _mixed([(domain, source.windows(use)) for domain, source in sources])


def _mixed(parts: Iterable[tuple[str, Windows]]) -> dict[str, Windows]:
    by_domain: dict[str, list[Windows]] = {}
    for domain, windows in parts:
        if len(windows.token_ids):
            by_domain.setdefault(domain, []).append(windows)
    return {domain: mixed(windows) for domain, windows in by_domain.items()}
