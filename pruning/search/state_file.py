"""A file that records a search, from which a later process can resume it.

Each line is a JSON object of the text fields of ``state.py``. Lines are only appended. The last one
may be incomplete, if the process died while it wrote.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pruning.records import InvalidRecord, parse_record, read_stored, replace_file
from pruning.removal import Removal
from pruning.search.state import (
    ScoredCandidate,
    SearchPlan,
    SearchState,
    decided_field,
    plan_field,
    round_name,
    scored_field,
)

_MAX_BYTES = 2**30  # of all losses of a search


class SearchFile:
    """The file at ``path``, which need not exist."""

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
