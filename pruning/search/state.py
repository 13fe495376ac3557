"""The state of a search, from which another process can resume it: text fields, and their file."""

import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pruning.models.block_times import BlockTimes
from pruning.records import (
    InvalidRecord,
    check_record,
    parse_record,
    read_record,
    read_stored,
    reason_of,
    replace_file,
)
from pruning.removal import Losses, Removal

logger = logging.getLogger(__name__)

PLAN = "plan"
RANKING = "0"  # the name of the round that ranks the candidates of the dense model

_MAX_BYTES = 2**30  # of the losses in a file
_NOTHING: Mapping[int, Losses] = {}


def round_name(step: int) -> str:
    """The name of the greedy round ``step``, 1 for the first."""
    return str(step)


@dataclass(frozen=True)
class SearchPlan:
    """What a search depends on beside its spec. Losses of different plans do not compare."""

    windows_digest: str
    num_remove: int  # an upper bound if losses decide
    times: BlockTimes | None = None  # of a decode step; None in older states
    model_fingerprint: str | None = None  # of the dense model; None in older states

    def holds_for(self, windows_digest: str, model_fingerprint: str) -> bool:
        """Whether losses of this plan compare with those of this text and this model."""
        is_of_model = self.model_fingerprint in (None, model_fingerprint)
        return self.windows_digest == windows_digest and is_of_model

    @classmethod
    def from_json(cls, text: str) -> "SearchPlan":
        """Raises ``ValueError``."""
        plan = read_record(cls, parse_record(text))
        if plan.num_remove < 1 or not (plan.times is None or plan.times.is_plausible):
            raise InvalidRecord("it is the plan of no search")
        return plan


@dataclass(frozen=True)
class ScoredCandidate:
    """The losses of one candidate in the round of that name, which is not decided yet.

    They are those of the first windows, and of all of them in the end.
    """

    round: str
    block: int
    losses: Losses


@dataclass(frozen=True)
class SearchState:
    """``removals`` are the decisions of rounds. ``scored`` has losses of candidates by the names of
    other rounds.
    """

    plan: SearchPlan | None = None
    removals: tuple[Removal, ...] = ()
    scored: Mapping[str, Mapping[int, Losses]] = field(default_factory=dict)

    def scored_in(self, name: str) -> Mapping[int, Losses]:
        """The losses of the candidates of an undecided round."""
        return self.scored.get(name, _NOTHING)

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "SearchState":
        """Parse what the functions below write.

        A broken field is a line in the log, and what it recorded is done again: a decision, a
        candidate, or all with a broken plan.
        """
        plan: SearchPlan | None = None
        decided: dict[str, Removal] = {}
        scored: dict[str, dict[int, Losses]] = {}
        for field_name, text in fields.items():
            kind, _, name = field_name.partition(":")
            try:
                if field_name == PLAN:
                    plan = SearchPlan.from_json(text)
                elif kind == _DECIDED:
                    decided[name] = _decision(text)
                elif kind == _SCORED:
                    of_round, _, block = name.rpartition(":")
                    scored.setdefault(of_round, {})[int(block)] = _losses(text)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                logger.warning(
                    "the field %.80r of a search is broken, and is found again: %s",
                    *(field_name, reason_of(error)),
                )
        if plan is None and PLAN in fields:
            return cls()
        removals: list[Removal] = []
        while (removal := decided.pop(round_name(len(removals) + 1), None)) is not None:
            removals.append(removal)
        return cls(plan, tuple(removals), scored)

    def within(self, free: Collection[int], num_windows: int) -> "SearchState":
        """Without what no search of these free blocks and so many windows can have recorded."""
        removals: list[Removal] = []
        for removal in self.removals:
            is_new = removal.block not in {earlier.block for earlier in removals}
            if removal.block not in free or not is_new or removal.step != len(removals) + 1:
                break
            removals.append(removal)
        return replace(
            self,
            removals=tuple(removals[: self.plan.num_remove if self.plan else None]),
            scored={
                name: {
                    block: losses
                    for block, losses in candidates.items()
                    if block in free and len(losses) <= num_windows
                }
                for name, candidates in self.scored.items()
            },
        )


def _decision(text: str) -> Removal:
    removal = read_record(Removal, parse_record(text))
    if removal.block not in removal.scores or removal.scores.keys() != removal.num_windows.keys():
        raise InvalidRecord("it has no score of the block that it removes")
    return removal


def _losses(text: str) -> Losses:
    """Finite ones: a search ends at others, and records none."""
    losses = parse_record(f'{{"losses": {text}}}')["losses"]
    check_record(ScoredCandidate("", 0, losses))
    return [float(loss) for loss in losses]


def num_whole(scored: Mapping[int, Losses], num_windows: int) -> int:
    """How many evaluations the losses of some candidates amount to."""
    return sum(map(len, scored.values())) // num_windows


_DECIDED, _SCORED = "round", "scored"


def plan_field(plan: SearchPlan) -> dict[str, str]:
    return {PLAN: json.dumps(asdict(plan))}


def scored_field(scored: ScoredCandidate) -> dict[str, str]:
    return {f"{_SCORED}:{scored.round}:{scored.block}": json.dumps(list(scored.losses))}


def decided_field(name: str, removal: Removal) -> dict[str, str]:
    """The field of the round of that name."""
    return {f"{_DECIDED}:{name}": json.dumps(asdict(removal))}


def obsolete_fields(name: str, removal: Removal) -> tuple[str, ...]:
    """Names of the fields that are obsolete once the round of that name is decided."""
    return tuple(f"{_SCORED}:{name}:{block}" for block in removal.scores)


class SearchFile:
    """The file at ``path``, which records a search and need not exist.

    Each line is a JSON object of text fields. Lines are only appended. The last one may be
    incomplete, if the process died while it wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> SearchState:
        """The recorded state; an empty one if nothing usable is recorded."""
        return SearchState.from_fields(self._fields())

    def begin(self, plan: SearchPlan) -> None:
        """Record a search of this plan. What other plans found is discarded."""
        fields = self._fields() if self.read().plan == plan else plan_field(plan)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # a kill while it is written must not lose the record, nor another process take its place
        content = _line(fields)  # without an incomplete line
        replace_file(self.path, content.encode(), 0o666)

    def scored(self, scored: ScoredCandidate) -> None:
        self._append(scored_field(scored))

    def removed(self, removal: Removal) -> None:
        self._append(decided_field(round_name(removal.step), removal))

    def discard(self) -> None:
        """Remove the file, and its folder if it was the last one."""
        self.path.unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

    def _fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        try:
            lines = read_stored(self.path, _MAX_BYTES).split(b"\n")
        except FileNotFoundError:
            return fields
        for line in lines:
            with suppress(InvalidRecord):  # of an incomplete line
                fields.update(parse_record(line))
        return fields

    def _append(self, fields: Mapping[str, str]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(fields))


def _line(fields: Mapping[str, str]) -> str:
    return json.dumps(dict(fields)) + "\n"
