"""The windows of one source of text, for each use that a pruning run has for text.

What chooses blocks, fits a repair or trains (calibration, repair, healing) shares nothing with what
chooses between repairs or ends a training (selection) and with what measures (evaluation).
Documents are kept apart where there are any: the splits of a corpus, or the records of a ``.jsonl``
file. Other files are kept apart by window.
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.data.corpora import (
    HUB_CORPORA,
    NOT_ENOUGH,
    CalibrationError,
    Corpus,
    Split,
    read_rows,
)
from pruning.data.documents import draw_kinds, packaged_documents, split_documents
from pruning.data.forms import prose_forms
from pruning.data.model_text import Observe, sampled_text, unobserved
from pruning.data.windows import Windows, all_windows, behind_beginning
from pruning.plural import counted
from pruning.spec.calibration import PACKAGED, CalibrationSpec, Dataset, Sampling
from pruning.spec.evaluation import Evaluation

MIN_REPAIR_WINDOWS = 16
REPAIR_SAMPLES = 32  # as many as for a calibration, while they have no more than
REPAIR_TOKENS = 2**15  # tokens; benchmarks/results has what more of them give
MIN_SELECTION_WINDOWS = 4
MAX_HEALING_WINDOWS = 2**14
MAX_HEALING_SAMPLES = 16  # as many as for a calibration, of text that the model has to write


class Use(Enum):
    """What windows are for."""

    CALIBRATION = "calibration"  # chooses blocks
    REPAIR = "repair"  # fits a repair; has the calibration windows, too
    HEALING = "healing"  # trains an adapter; includes those of the repair
    SELECTION = "selection"  # chooses between repairs, and when to stop a training
    EVALUATION = "evaluation"  # measures


def source_of(
    spec: CalibrationSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    observe: Observe = unobserved,
) -> "Source":
    """The source that ``spec`` names. Raises ``CalibrationError``, as ``windows`` of it does."""
    check_positions(spec.seqlen, model)
    if spec.dataset is Dataset.SELF:
        return _ModelText(spec, model, observe)
    if spec.dataset in PACKAGED:
        return packaged_source(spec, tokenizer)
    if spec.path is None:
        known = HUB_CORPORA[spec.dataset]
        names = {
            split: behind_beginning(f"{spec.dataset} {part.split}", tokenizer)
            for split, part in known.parts.items()
        }
        return _SplitText(spec, known.load, names, tokenizer)
    return file_source(spec, Path(spec.path), tokenizer)


def check_positions(seqlen: int, model: PreTrainedModel, field: str = "seqlen") -> None:
    """Raise ``CalibrationError`` for windows that are longer than the model can read."""
    if seqlen > max_positions(model):
        raise CalibrationError(
            "seqlen_too_long",
            f"{field}={seqlen} exceeds the context length of the model, "
            f"{max_positions(model)} tokens",
        )


def max_positions(model: PreTrainedModel) -> int:
    """The context length of the model, in tokens."""
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    return sys.maxsize if positions is None else positions


def file_source(spec: CalibrationSpec, path: Path, tokenizer: PreTrainedTokenizerBase) -> "Source":
    """The source of a file. Raises ``CalibrationError``."""
    rows, name = read_rows(path), behind_beginning(f"file {path}", tokenizer)
    if path.suffix == ".jsonl" and spec.sampling is Sampling.WINDOWS:
        by_split = {split: {"": texts} for split, texts in split_documents(rows).items()}
        documents = _DocumentText(spec, by_split, name, tokenizer)
        if documents.is_enough:
            return documents
    return _FileText(spec, rows, name, tokenizer)


def num_wanted(spec: CalibrationSpec, use: Use) -> int:
    """How many windows a use takes of this source, or rows with ``sampling=rows``."""
    num_samples = spec.num_samples
    match use:
        case Use.REPAIR if spec.dataset is Dataset.SELF:
            return least_repair(spec)
        case Use.REPAIR:
            enough = min(REPAIR_SAMPLES * num_samples, REPAIR_TOKENS // spec.seqlen)
            return max(least_repair(spec), enough)
        case Use.SELECTION:
            return max(MIN_SELECTION_WINDOWS, num_samples // 2)  # they go through all blocks
        case Use.HEALING if spec.dataset is Dataset.SELF:
            return max(MIN_REPAIR_WINDOWS, MAX_HEALING_SAMPLES * num_samples)
        case Use.HEALING:
            return MAX_HEALING_WINDOWS
    return num_samples


def least_repair(spec: CalibrationSpec) -> int:
    """How many windows of this source a repair is fitted on at least, if the text has them."""
    return max(MIN_REPAIR_WINDOWS, 4 * spec.num_samples)


class _ModelText:
    """Text that the model generates: each use has a seed of its own."""

    def __init__(self, spec: CalibrationSpec, model: PreTrainedModel, observe: Observe) -> None:
        self._spec, self._model, self._observe = spec, model, observe

    def windows(self, use: Use) -> Windows:
        wanted, seed = num_wanted(self._spec, use), self._spec.seed
        match use:
            case Use.CALIBRATION:
                return self._sampled(wanted, seed)
            case Use.EVALUATION:
                return self._sampled(wanted, seed + 1)
            case Use.SELECTION:
                return self._sampled(wanted, seed + 2)
        first = self.windows(Use.CALIBRATION)
        more = self._sampled(wanted - self._spec.num_samples, seed + 3)
        return replace(first, token_ids=torch.cat([first.token_ids, more.token_ids]))

    def pool(self, evaluation: Evaluation) -> Windows:
        """As many as the calibration has: more would take the model long to write."""
        wanted = evaluation.num_samples or self._spec.num_samples
        return self._sampled(wanted, self._spec.seed + 1, evaluation.seqlen)

    def _sampled(self, num_windows: int, seed: int, seqlen: int | None = None) -> Windows:
        seqlen = seqlen or self._spec.seqlen
        token_ids = sampled_text(self._model, num_windows, seqlen, seed, self._observe)
        return Windows(token_ids, f"self (seed {seed})")


class _Shuffled:
    """The rows or the windows of a corpus, in the order that the seed gives them."""

    def __init__(
        self, corpus: Corpus, spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._corpus, self._spec, self._tokenizer = corpus, spec, tokenizer

    def take(self, start: int, stop: int) -> torch.Tensor:
        """Windows ``[num_windows, seqlen]`` of the items in this range, as far as there are any."""
        rng = random.Random(self._spec.seed)  # noqa: S311 - a reproducible sample, not a secret
        if self._spec.sampling is Sampling.ROWS:
            rows = rng.sample(self._corpus.rows, len(self._corpus.rows))[start:stop]
            text = Corpus(rows, self._corpus.separator).text
            return all_windows(text, self._spec.seqlen, self._tokenizer)
        order = rng.sample(range(len(self._windows)), len(self._windows))
        return self._windows[sorted(order[start:stop])]

    def drawn(self, *parts: slice) -> torch.Tensor:
        """The windows of these ranges in their random order, not in that of the text."""
        rng = random.Random(self._spec.seed)  # noqa: S311 - as above
        order = rng.sample(range(len(self)), len(self))
        return self._windows[[at for part in parts for at in order[part]]]

    def __len__(self) -> int:
        return len(self._windows)

    @cached_property
    def _windows(self) -> torch.Tensor:
        return all_windows(self._corpus.text, self._spec.seqlen, self._tokenizer)


@dataclass(frozen=True)
class _SplitText:
    """A corpus with a named part for each split, of which rows or windows are sampled."""

    spec: CalibrationSpec
    load: Callable[[Split], Corpus]
    names: Mapping[Split, str]
    tokenizer: PreTrainedTokenizerBase

    def windows(self, use: Use) -> Windows:
        split = _SPLITS[use]
        shuffled = _Shuffled(self.load(split), self.spec, self.tokenizer)
        token_ids = shuffled.take(0, num_wanted(self.spec, use))
        if use is Use.CALIBRATION or use is Use.EVALUATION:
            check_enough(self.spec, len(token_ids))
        return Windows(token_ids, self.names[split])

    def pool(self, evaluation: Evaluation) -> Windows:
        split = Split.EVALUATION
        spec = replace(self.spec, seqlen=evaluation.seqlen or self.spec.seqlen)
        shuffled = _Shuffled(self.load(split), spec, self.tokenizer)
        token_ids = shuffled.drawn(slice(evaluation.most_windows))
        check_enough(replace(spec, num_samples=1), len(token_ids))
        return Windows(token_ids, self.names[split])


class _FileText:
    """A file as one text: every window, or row, has one use.

    The order is calibration, evaluation, selection, repair and healing, and a last part that only
    evaluations of a size of their own use.
    """

    def __init__(
        self,
        spec: CalibrationSpec,
        rows: Sequence[str],
        name: str,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._spec, self._name = spec, name
        self._shuffled = _Shuffled(Corpus(rows, "\n"), spec, tokenizer)

    def windows(self, use: Use) -> Windows:
        num_samples = self._spec.num_samples
        match use:
            case Use.CALIBRATION:
                used = self._shuffled.take(0, num_samples)
                check_enough(self._spec, len(used))
                return Windows(used, self._name)
            case Use.EVALUATION:
                return self._held_out()
        selection_end = 2 * num_samples + num_wanted(self._spec, Use.SELECTION)
        if use is Use.SELECTION:
            chosen = self._shuffled.take(2 * num_samples, selection_end)
            return Windows(chosen, f"{self._name}, windows for selection")
        end = selection_end + num_wanted(self._spec, use) - num_samples
        more = self._shuffled.take(selection_end, min(end, self._reserved_from))
        used = self._shuffled.take(0, num_samples)
        return Windows(torch.cat([used, more]), self._name)

    @property
    def _reserved_from(self) -> int:
        """Where the part begins that only evaluations use: a fifth of all windows, if it can be."""
        if self._spec.sampling is Sampling.ROWS:
            return sys.maxsize
        others = sum(num_wanted(self._spec, use) for use in (Use.EVALUATION, Use.SELECTION))
        total = len(self._shuffled)
        return max(others + least_repair(self._spec), total - total // 5)

    def pool(self, evaluation: Evaluation) -> Windows:
        if evaluation.seqlen not in (None, self._spec.seqlen):
            raise CalibrationError(
                "seqlen_of_one_text",
                f"evaluation.seqlen={evaluation.seqlen}: {self._name} is split into windows of "
                f"the calibration's {self._spec.seqlen} tokens; leave evaluation.seqlen out, or "
                "use a .jsonl file with several documents",
            )
        if self._spec.sampling is Sampling.ROWS:
            return self._held_out().first(evaluation.most_windows)
        num_samples = self._spec.num_samples
        parts = slice(num_samples, 2 * num_samples), slice(self._reserved_from, None)
        token_ids = self._shuffled.drawn(*parts)
        if not len(token_ids):
            return self._held_out().first(evaluation.most_windows)
        name = f"{self._name}, other windows than the calibration's"
        return Windows(token_ids[: evaluation.most_windows], name)

    def _held_out(self) -> Windows:
        num_samples = self._spec.num_samples
        rest = self._shuffled.take(num_samples, 2 * num_samples)
        if len(rest):
            return Windows(rest, f"{self._name}, other windows than the calibration's")
        used = self._shuffled.take(0, num_samples)
        return Windows(used, f"{self._name}, the calibration's own windows: it has no others")


@dataclass(frozen=True)
class _DocumentText:
    """Documents by kind, each in one split. No window crosses two splits or kinds.

    ``forms`` are further kinds to fit a repair on and to train on.
    """

    spec: CalibrationSpec
    documents: Mapping[Split, Mapping[str, Sequence[str]]]
    name: str
    tokenizer: PreTrainedTokenizerBase
    forms: Callable[[], Mapping[str, Sequence[str]]] = dict

    @property
    def is_enough(self) -> bool:
        """Whether each split has windows, and calibration as many as it takes."""
        num_calibration = len(self._draw(Use.CALIBRATION).token_ids)
        others = (Use.SELECTION, Use.EVALUATION)
        return num_calibration >= self.spec.num_samples and all(
            len(self._draw(use).token_ids) for use in others
        )

    def windows(self, use: Use) -> Windows:
        drawn = self._draw(use)
        if use is Use.CALIBRATION:
            check_enough(self.spec, len(drawn.token_ids))
        return drawn

    def pool(self, evaluation: Evaluation) -> Windows:
        seqlen = evaluation.seqlen or self.spec.seqlen
        return self._drawn(Use.EVALUATION, evaluation.most_windows, seqlen, 0)

    def _draw(self, use: Use) -> Windows:
        """Evaluation windows do not depend on the seed: what is measured stays comparable."""
        seed = 0 if use is Use.EVALUATION else self.spec.seed
        return self._drawn(use, num_wanted(self.spec, use), self.spec.seqlen, seed)

    def _drawn(self, use: Use, wanted: int, seqlen: int, seed: int) -> Windows:
        split = _SPLITS[use]
        documents = self.documents[split]
        if use in (Use.REPAIR, Use.HEALING):
            documents = {**documents, **self.forms()}
        drawn = draw_kinds(documents, wanted, seqlen, seed, self.tokenizer)
        return Windows(
            drawn.token_ids,
            f"{self.name}, {split} documents",
            kinds=drawn.kinds,
            documents=drawn.documents,
        )


# ``windows`` may be fewer than wanted, and none for selection. ``pool`` has those for an evaluation
# of a size of its own, of which any first few represent all.
Source = _ModelText | _SplitText | _FileText | _DocumentText

_SPLITS: Mapping[Use, Split] = {
    Use.CALIBRATION: Split.CALIBRATION,
    Use.REPAIR: Split.CALIBRATION,
    Use.HEALING: Split.CALIBRATION,
    Use.SELECTION: Split.SELECTION,
    Use.EVALUATION: Split.EVALUATION,
}


def packaged_source(spec: CalibrationSpec, tokenizer: PreTrainedTokenizerBase) -> "Source":
    """A packaged text: windows of its documents, or rows that are the lines of them."""
    documents = packaged_documents(spec.dataset)
    name = behind_beginning(f"packaged {spec.dataset}", tokenizer)
    if spec.sampling is Sampling.WINDOWS:
        forms = prose_forms if spec.dataset is Dataset.PROSE else dict
        return _DocumentText(spec, documents, name, tokenizer, forms)

    def lines(split: Split) -> Corpus:
        texts = chain.from_iterable(documents[split].values())
        rows = (row for text in texts for row in text.splitlines())
        return Corpus([row for row in rows if row.strip()], "\n")

    names = {split: f"{name}, {split} documents" for split in Split}
    return _SplitText(spec, lines, names, tokenizer)


def check_enough(spec: CalibrationSpec, num_windows: int) -> None:
    """Raise ``CalibrationError`` for fewer windows than a calibration must have."""
    least = 1 if spec.sampling is Sampling.ROWS else spec.num_samples
    if num_windows < least:
        raise CalibrationError(
            NOT_ENOUGH,
            f"the text is too short: it gives {counted(num_windows, 'window')} of "
            f"{spec.seqlen} tokens, but {least} are needed; add text, or reduce the number "
            "of samples or seqlen",
        )
