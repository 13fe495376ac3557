"""The state of a search that somebody has damaged: what is broken is found again."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pruning.search.state import ScoredCandidate, SearchFile, SearchPlan, SearchState
from tests.support.mutations import mutations
from tests.support.pruning_runs import removals_of_run

NUM_WINDOWS = 4
FREE = range(1, 6)
PLAN = SearchPlan("windows", 2)
REMOVALS = tuple(removals_of_run(is_staged=False))


def fields_of(path: Path) -> dict[str, str]:
    file = SearchFile(path)
    file.begin(PLAN)
    for removal in REMOVALS:
        file.removed(removal)
    file.scored(ScoredCandidate("3", 4, [1.5, 2.5]))
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        found.update(json.loads(line))
    return found


def parsed(fields: Mapping[str, str]) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in fields.items()}


def written(record: object) -> dict[str, str]:
    """The fields of a mutated record, of which each is a text."""
    fields = record if isinstance(record, dict) else {"plan": record}
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }


def test_a_broken_field_costs_what_it_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = fields_of(tmp_path / "search.jsonl")
    whole = SearchState.from_fields(fields)
    assert (whole.removals, whole.scored_in("3")) == (REMOVALS, {4: [1.5, 2.5]})
    with caplog.at_level(logging.WARNING):
        half = SearchState.from_fields({**fields, "scored:3:4": "[NaN]", "round:2": "[" * 200_000})
    assert (half.removals, half.scored_in("3")) == (REMOVALS[:1], {})
    assert len(caplog.messages) == 2
    assert SearchState.from_fields({**fields, "plan": "{}"}) == SearchState()


def test_what_no_search_of_the_model_can_have_recorded_is_left_out(tmp_path: Path) -> None:
    record = parsed(fields_of(tmp_path / "search.jsonl"))
    record["scored:3:1000000"] = [1.5]
    record["scored:3:5"] = [1.5] * (NUM_WINDOWS + 1)
    block = record["round:2"]["block"]
    for part in ("scores", "num_windows"):
        record["round:2"][part]["0"] = record["round:2"][part].pop(str(block))
    record["round:2"]["block"] = 0
    state = SearchState.from_fields(written(record))
    assert len(state.removals) == 2
    assert state.within(FREE, NUM_WINDOWS).removals == REMOVALS[:1]
    assert state.within(FREE, NUM_WINDOWS).scored_in("3") == {4: [1.5, 2.5]}


def test_every_state_can_be_read(tmp_path: Path, num_mutations: int) -> None:
    record = parsed(fields_of(tmp_path / "search.jsonl"))
    file, num_whole = SearchFile(tmp_path / "other.jsonl"), 0
    for text in mutations(record, num_mutations):
        try:
            fields = written(json.loads(text))
        except (ValueError, RecursionError):
            fields = {"plan": text}
        state = SearchState.from_fields(fields).within(FREE, NUM_WINDOWS)
        blocks = [removal.block for removal in state.removals]
        assert len({*blocks} & {*FREE}) == len(blocks), text[:2_000]
        assert all(removal.score == removal.scores[removal.block] for removal in state.removals)
        num_whole += len(blocks) == len(REMOVALS)
        file.path.write_text(text, encoding="utf-8", errors="surrogatepass")
        file.read()
    assert 0 < num_whole < num_mutations
