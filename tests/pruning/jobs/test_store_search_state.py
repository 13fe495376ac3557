"""What a job keeps of its search for the next attempt, until it has ended."""

import json
import time
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from pruning.checkpoints.store import CheckpointStore
from pruning.jobs import transitions
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import JobError, Phase
from pruning.jobs.keys import RECORD, SEARCH
from pruning.jobs.script import StaleAttempt
from pruning.jobs.store import JobStore
from pruning.removal import Removal, decide
from pruning.search.state import (
    ScoredCandidate,
    SearchPlan,
    SearchState,
    decided_field,
    obsolete_fields,
    plan_field,
    round_name,
    scored_field,
)
from pruning.spec.prune import PruneSpec

PLAN = SearchPlan("d1g", 3)
FIRST = decide(1, 2.0, {1: [2.5, 2.25], 2: [3.0, 2.0], 3: [2.125]})
SECOND = decide(2, 2.0, {2: [1 / 3, 0.1], 3: [3.0, 2.0]})
losses = st.lists(st.floats(0, 20), min_size=1, max_size=4)


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    job_id = job_store.create(PruneSpec("tiny", num_remove=3)).id
    job_store.start(job_id, "first")
    return job_id


@given(
    rounds=st.lists(st.dictionaries(st.integers(0, 99), losses, min_size=1), max_size=4),
    scored=st.dictionaries(st.integers(0, 99), losses),
)
def test_a_state_survives_being_text(
    rounds: list[dict[int, list[float]]], scored: dict[int, list[float]]
) -> None:
    removals = [decide(step, 1.5, found) for step, found in enumerate(rounds, start=1)]
    fields = plan_field(PLAN)
    for removal in removals:
        fields |= decided_field(round_name(removal.step), removal)
    for block, found in scored.items():
        fields |= scored_field(ScoredCandidate("9", block, found))
    state = SearchState.from_fields(json.loads(json.dumps(fields)))
    assert state.removals == tuple(removals)
    assert state.scored_in("9") == scored
    assert state.scored_in("8") == {}


def test_the_store_keeps_what_a_search_has_found(job_store: JobStore, job_id: str) -> None:
    assert job_store.search_state(job_id) == SearchState()
    job_store.record(job_id, transitions.searching(PLAN, 0, 9))
    for done, block in enumerate(FIRST.scores, start=1):
        job_store.record(
            job_id,
            transitions.evaluated(done, 9, scored=[ScoredCandidate("1", block, [1.0 * block])]),
        )
    assert job_store.search_state(job_id) == SearchState(
        PLAN, scored={"1": {1: [1.0], 2: [2.0], 3: [3.0]}}
    )
    job_store.record(job_id, transitions.removed([FIRST]))
    job_store.record(
        job_id, transitions.evaluated(4, 9, scored=[ScoredCandidate("2", 3, [0.1, 1 / 3])])
    )
    assert job_store.search_state(job_id) == SearchState(
        PLAN, (FIRST,), scored={"2": {3: [0.1, 1 / 3]}}
    )
    job_store.record(job_id, transitions.removed([FIRST, SECOND]))
    assert job_store.search_state(job_id) == SearchState(PLAN, (FIRST, SECOND))


def test_the_next_worker_finds_it_and_the_record_shows_it_meanwhile(
    job_store: JobStore, job_id: str
) -> None:
    job_store.record(job_id, transitions.searching(PLAN, 0, 9))
    job_store.record(job_id, transitions.evaluated(4, 9, scored=[ScoredCandidate("2", 3, [0.5])]))
    job_store.record(job_id, transitions.removed([FIRST]))
    job_store.requeue(job_id, "its worker died", is_lost=True)
    waiting = job_store.get(job_id)
    assert (waiting.removed_blocks, waiting.progress.evaluations_done) == ((FIRST.block,), 4)
    assert (waiting.worker, waiting.phase) == (None, None)
    job_store.start(job_id, "second")
    assert job_store.search_state(job_id).removals == (FIRST,)


def test_another_plan_forgets_what_was_found(job_store: JobStore, job_id: str) -> None:
    job_store.record(job_id, transitions.searching(PLAN, 0, 9))
    job_store.record(job_id, transitions.removed([FIRST]))
    other = SearchPlan("0ther", 3)
    job_store.record(job_id, transitions.searching(other, 0, 9, is_anew=True))
    assert job_store.search_state(job_id) == SearchState(other)
    assert job_store.get(job_id).removed_blocks == ()


def test_a_worker_that_lost_the_job_adds_nothing(job_store: JobStore, job_id: str) -> None:
    job_store.record(job_id, transitions.searching(PLAN, 0, 9), 1)
    job_store.start(job_id, "second")
    with pytest.raises(StaleAttempt):
        job_store.record(job_id, transitions.evaluated(1, 9, [ScoredCandidate("1", 1, [9.0])]), 1)
    with pytest.raises(StaleAttempt):
        job_store.record(job_id, transitions.removed([FIRST]), 1)
    assert job_store.search_state(job_id) == SearchState(PLAN)


def end(store: JobStore, job_id: str, how: str) -> None:
    if how == "succeed":
        store.succeed(job_id, "tiny@x")
    elif how == "fail":
        store.fail(job_id, JobError("out_of_memory", "no"))
    else:
        store.cancel(job_id)
        store.stopped(job_id)


@pytest.mark.parametrize("how", ["succeed", "fail", "cancel"])
def test_an_ended_job_keeps_its_search_until_it_is_deleted(
    job_store: JobStore, job_id: str, redis_client: redis.Redis, tmp_path: Path, how: str
) -> None:
    job_store.record(job_id, transitions.searching(PLAN, 0, 9))
    job_store.record(job_id, transitions.removed([FIRST]))
    job_store.record(job_id, transitions.evaluated(4, 9, scored=[ScoredCandidate("2", 3, [0.5])]))
    end(job_store, job_id, how)
    assert job_store.get(job_id).removed_blocks == (FIRST.block,)
    assert job_store.search_state(job_id) == SearchState(PLAN, (FIRST,), scored={"2": {3: [0.5]}})
    JobDeletion(redis_client, job_store, CheckpointStore(tmp_path)).delete(job_id)
    assert not redis_client.exists(SEARCH.format(id=job_id))


@pytest.mark.parametrize("how", ["succeed", "fail", "cancel"])
def test_a_new_job_goes_on_with_the_search_of_another(
    job_store: JobStore, job_id: str, how: str
) -> None:
    job_store.record(job_id, transitions.searching(PLAN, 0, 9))
    job_store.record(job_id, transitions.removed([FIRST]))
    job_store.record(job_id, transitions.evaluated(4, 9, scored=[ScoredCandidate("2", 3, [0.5])]))
    end(job_store, job_id, how)
    created = job_store.create(PruneSpec("tiny", num_remove=3), search_of=job_id)
    assert job_store.search_state(created.id) == job_store.search_state(job_id)
    assert created.search_of == job_id
    assert (created.removed_blocks, created.losses) == ((FIRST.block,), (FIRST.loss,))
    assert created.progress.evaluations_done == 4
    job_store.start(created.id, "w")
    job_store.record(created.id, transitions.searching(SearchPlan("0ther", 3), 0, 9, is_anew=True))
    assert job_store.search_state(job_id).removals == (FIRST,)  # a copy of its own
    assert job_store.get(created.id).removed_blocks == ()


def test_a_job_whose_search_is_gone_begins_its_own(job_store: JobStore) -> None:
    created = job_store.create(PruneSpec("tiny", num_remove=3), search_of="prn-" + "0" * 21)
    assert (created.search_of, created.removed_blocks) == (None, ())
    assert job_store.search_state(created.id) == SearchState()


def test_the_pace_counts_what_this_worker_has_done(job_store: JobStore, job_id: str) -> None:
    """Behind 90 evaluations of an earlier worker, three of its own say how long 7 take."""
    began_s = time.time()
    job_store.record(job_id, transitions.phase_begun(Phase.SEARCH))
    job_store.record(job_id, transitions.searching(PLAN, 90, 100))
    job_store.record(job_id, transitions.evaluated(92, 100))
    assert job_store.get(job_id).estimated_finish is None
    job_store.record(job_id, transitions.evaluated(93, 100))
    now_s = time.time()
    finish_s = job_store.get(job_id).estimated_finish
    assert finish_s is not None
    assert began_s < finish_s <= now_s + 7 / 3 * (now_s - began_s)


def test_the_time_of_a_pause_does_not_count(
    job_store: JobStore, job_id: str, redis_client: redis.Redis
) -> None:
    job_store.record(job_id, transitions.phase_begun(Phase.SEARCH))
    job_store.record(job_id, transitions.searching(PLAN, 0, 100))
    job_store.record(job_id, transitions.evaluated(90, 100))
    long_ago = str(time.time() - 1e6)
    redis_client.hset(RECORD.format(id=job_id), "search_started_at", long_ago)
    job_store.pause(job_id)
    assert job_store.get(job_id).estimated_finish is not None  # it runs
    job_store.stopped(job_id)
    assert job_store.get(job_id).estimated_finish is None
    job_store.resume(job_id)
    assert job_store.get(job_id).estimated_finish is None
    job_store.start(job_id, "second")
    job_store.record(job_id, transitions.phase_begun(Phase.SEARCH))
    assert job_store.get(job_id).estimated_finish is None
    job_store.record(job_id, transitions.searching(PLAN, 90, 100))
    job_store.record(job_id, transitions.evaluated(93, 100))
    finish_s = job_store.get(job_id).estimated_finish
    assert finish_s is not None
    assert finish_s < time.time() + 60


def test_decided_candidates_are_those_of_the_round() -> None:
    removal: Removal = FIRST
    assert obsolete_fields("1", removal) == ("scored:1:1", "scored:1:2", "scored:1:3")
