"""What was measured here of variants beside their dense model: perplexities of int8 weights, and
answers to zero-shot tasks.

The manifest of a checkpoint has the perplexities of plain weights. Both are of the same windows of
text. All are those of one model: the fingerprint tells whether it was replaced since.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from app.json_file import JsonFile
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import DomainQuality, Interval
from pruning.evaluation.task_shares import TaskShares
from pruning.records import InvalidRecord, parse_record, read_record

FILE = "qualities.json"
_FORMAT = 2

_Part = TypeVar("_Part")
# by names of variants that no later job changes
_ByVariant = Mapping[str, Sequence[DomainQuality]]
_TasksByVariant = Mapping[str, Sequence[PairedTask]]


@dataclass(frozen=True)
class _OfModel:
    """``fingerprint`` is that of the dense weights. Each domain has the variant as its only
    depth.
    """

    fingerprint: str
    variants: _ByVariant = field(default_factory=dict)
    tasks: _TasksByVariant = field(default_factory=dict)


class MeasuredQualities:
    """The measurements of one data directory. Without a readable file, there are none."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[dict[str, _OfModel]] = JsonFile(data_dir / FILE, _parsed, dict)

    def of(self, model: str, fingerprint: str | None, variant: str) -> Mapping[str, Interval]:
        """The ratios to the dense perplexity, by domain. None are known of another variant."""
        domains = self.of_model(model, fingerprint).get(variant, ())
        return {domain.domain: domain.ratio(domain.raw[0]) for domain in domains}

    def of_model(self, model: str, fingerprint: str | None) -> _ByVariant:
        """Nothing if they were measured on other weights."""
        return self._known(model, fingerprint).variants

    def tasks(
        self,
        model: str,
        fingerprint: str | None,
        variant: str,
        of_job: Sequence[PairedTask] = (),
    ) -> TaskShares | None:
        """With those that its job has asked. None if no task of this variant is known."""
        known = self._known(model, fingerprint).tasks.get(variant, ())
        return TaskShares.of(_largest((*of_job, *known), _of_task))

    def record(
        self,
        model: str,
        fingerprint: str,
        measured: _ByVariant | None = None,
        tasks: _TasksByVariant | None = None,
    ) -> None:
        """Keep what was measured of these variants, unless a domain or a task is known
        of more text or questions, and nothing of other weights of this name.

        Raises ``OSError``.
        """
        with self._file.changing():
            known = self._known(model, fingerprint)
            domains = {
                variant: _largest((*known.variants.get(variant, ()), *found), _of_domain)
                for variant, found in (measured or {}).items()
            }
            answers = {
                variant: _largest((*known.tasks.get(variant, ()), *found), _of_task)
                for variant, found in (tasks or {}).items()
            }
            if domains or answers:
                of_model = _OfModel(
                    fingerprint, {**known.variants, **domains}, {**known.tasks, **answers}
                )
                models = {**self._file.read_or_empty(), model: of_model}
                rows = {name: asdict(each) for name, each in models.items()}
                self._file.replace({"format": _FORMAT, "models": rows})

    def _known(self, model: str, fingerprint: str | None) -> _OfModel:
        known = self._file.read_or_empty().get(model)
        is_same = known is not None and known.fingerprint == fingerprint
        return known if known is not None and is_same else _OfModel(fingerprint or "")


def _of_domain(domain: DomainQuality) -> tuple[str, int]:
    """Its name, and the tokens that it was measured on."""
    return domain.domain, domain.num_windows * domain.seqlen


def _of_task(task: PairedTask) -> tuple[str, int]:
    """Its name, and the questions that it was measured on."""
    return task.task, task.num_questions


def _largest(parts: Sequence[_Part], size_of: Callable[[_Part], tuple[str, int]]) -> list[_Part]:
    """Each part once: the one that was measured on the most, and the last of those."""
    largest: dict[str, _Part] = {}
    for part in parts:
        name, size = size_of(part)
        if size >= size_of(largest.setdefault(name, part))[1]:
            largest[name] = part
    return [*largest.values()]


def _parsed(content: bytes) -> dict[str, _OfModel]:
    data = parse_record(content)
    if data["format"] != _FORMAT:
        raise InvalidRecord(f"format {data['format']!r} is not supported, expected {_FORMAT}")
    return {
        name: _of_model(row["fingerprint"], row["variants"], row.get("tasks", {}))
        for name, row in data["models"].items()
    }


_Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def _of_model(fingerprint: object, domains_of: _Rows, tasks_of: _Rows) -> _OfModel:
    if not isinstance(fingerprint, str):
        raise InvalidRecord("a fingerprint is no string")
    variants = {
        name: tuple(map(DomainQuality.from_dict, domains)) for name, domains in domains_of.items()
    }
    tasks = {
        name: tuple(read_record(PairedTask, row) for row in rows) for name, rows in tasks_of.items()
    }
    for domain in (one for domains in variants.values() for one in domains):
        if not domain.has_depths(1):
            raise InvalidRecord(f"the domain {domain.domain!r} has not one variant")
    return _OfModel(fingerprint, variants, tasks)
