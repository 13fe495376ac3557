"""Plans: what a step needs is there, nothing is kept for longer, and nothing is done twice."""

from collections.abc import Callable
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from pruning.removal import kept
from pruning.repair.plan import (
    EMBEDDED,
    Part,
    Plan,
    Route,
    Run,
    Step,
    observed,
    plan_of,
    refitted,
    unrepaired,
)

NUM_BLOCKS = 7
ORDER = (14, 26, 13, 12, 25, 3)  # of the demo model with 30 blocks
ROUTES = [unrepaired, *(partial(refitted, num_behind=number) for number in range(3))]

keep_sets = st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=1).map(lambda s: tuple(sorted(s)))
lanes = st.lists(st.tuples(keep_sets, st.sampled_from(ROUTES)), min_size=1)
Lanes = list[tuple[tuple[int, ...], Callable[[tuple[int, ...], int], Route]]]


def routes_of(found: Lanes) -> list[Route]:
    return [route(keep, NUM_BLOCKS) for keep, route in found]


def steps_to(plan: Plan, stream: int) -> list[Step]:
    return [plan.streams[passed].step for passed in plan.way_to(stream)]


@given(lanes)
def test_every_model_takes_its_route(found: Lanes) -> None:
    routes = routes_of(found)
    plan = plan_of(routes)
    assert [tuple(steps_to(plan, end)) for end in plan.ends] == routes
    for end in plan.ends:
        for passed in plan.way_to(end):
            stream = plan.streams[passed]
            assert Part.SELECTION in stream.parts
            if not isinstance(stream.step, Run):
                assert stream.dense is not None
                dense = [Run(block) for block in range(stream.step.after)]
                assert steps_to(plan, stream.dense) == dense


@given(lanes)
def test_what_a_step_needs_is_there_and_in_the_end_only_the_ends(found: Lanes) -> None:
    plan = plan_of(routes_of(found))
    alive = {(EMBEDDED, part) for part in plan.embedded}
    for visit in plan.visits:
        for number in visit.streams:
            stream = plan.streams[number]
            needed = {(stream.source, part) for part in stream.reads}
            if stream.dense is not None:
                needed |= {(stream.dense, part) for part in observed(stream.step)}
            assert needed <= alive
            assert plan.releases.get(number, frozenset()) <= needed
            alive -= plan.releases.get(number, frozenset())
            alive |= {(number, part) for part in stream.parts}
            assert visit.block == stream.step.block
    assert alive == {(end, Part.SELECTION) for end in plan.ends}


@given(lanes)
def test_each_beginning_of_a_route_is_one_stream(found: Lanes) -> None:
    routes = routes_of(found)
    plan = plan_of(routes)
    cuts = [step.after for each in routes for step in each if not isinstance(step, Run)]
    dense = tuple(Run(block) for block in range(max(cuts, default=0)))
    beginnings = {each[:number] for each in (*routes, dense) for number in range(1, len(each) + 1)}
    made = [number for visit in plan.visits for number in visit.streams]
    assert sorted(made) == sorted(plan.streams)
    assert len(made) == len(beginnings)


def test_training_windows_go_no_further_than_the_last_cut() -> None:
    keeps = [kept(30, ORDER[:number]) for number in range(1, 7)]
    in_front = partial(refitted, num_behind=0)
    plan = plan_of([route(keep, 30) for keep in keeps for route in (unrepaired, in_front)])

    def num_runs(part: Part) -> int:
        return sum(part in stream.reads for stream in plan.streams.values())

    # the dense model runs 27 blocks; depth by depth, ridge runs 1, 11, 12, 12, 1 and 19
    assert num_runs(Part.REST) == 27 + 1 + 11 + 12 + 12 + 1 + 19
    assert num_runs(Part.SAMPLE) == num_runs(Part.REST)
    assert num_runs(Part.SELECTION) < 6 * 2 * 30 / 1.9


def test_without_a_repair_no_training_window_runs() -> None:
    plan = plan_of([unrepaired((0, 2, 3), 4), unrepaired((1, 2), 4)])
    assert plan.embedded == {Part.SELECTION}
    assert [visit.block for visit in plan.visits] == [0, 1, 2, 3]
