"""What runs agree on, against sets and pairs counted by hand or by brute force."""

import json
from collections.abc import Mapping
from fractions import Fraction
from itertools import combinations, permutations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.removal import decide
from pruning.stability.agreement import SearchRun, jaccard, jaccard_by_chance, stability
from pruning.stability.report import block_table, conclusions, depth_table, to_wire
from tests.support.search_runs import CLEAR, NUM_BLOCKS, report_of, run_of

CLOSE = 0.001


orders = st.lists(
    st.permutations(range(1, NUM_BLOCKS - 1)).map(lambda p: p[:3]), min_size=2, max_size=5
)


@given(orders=orders, texts=st.lists(st.sampled_from("ab"), min_size=5, max_size=5))
def test_agreement_is_that_of_all_pairs(orders: list[list[int]], texts: list[str]) -> None:
    runs = [
        run_of(order, text=text, seed=seed)
        for seed, (order, text) in enumerate(zip(orders, texts, strict=False))
    ]
    report = report_of(*runs)
    for number, depth in enumerate(report.depths, start=1):
        pairs = list(combinations(runs, 2))
        shared = [len(set(a.order[:number]) & set(b.order[:number])) for a, b in pairs]
        overlaps = [both / (2 * number - both) for both in shared]
        assert depth.overlap == pytest.approx(fmean(overlaps))
        assert depth.lowest_overlap == pytest.approx(min(overlaps))
        for is_same, found in (
            (True, depth.overlap_within_text),
            (False, depth.overlap_across_texts),
        ):
            of_kind = [
                overlap
                for overlap, (a, b) in zip(overlaps, pairs, strict=True)
                if (a.text == b.text) is is_same
            ]
            assert found == (pytest.approx(fmean(of_kind)) if of_kind else None)
        in_all = [b for b in range(NUM_BLOCKS) if all(b in run.order[:number] for run in runs)]
        assert list(depth.shared_by_all) == in_all
        assert depth.num_sets == len({frozenset(run.order[:number]) for run in runs})
        assert depth.num_orders == len({run.order[:number] for run in runs})
    assert report.is_choice_in_noise == (len({frozenset(order) for order in orders}) > 1)
    for one in report.picked:
        steps = sorted(order.index(one.block) + 1 for order in orders if one.block in order)
        assert (one.num_runs, list(one.steps)) == (len(steps), steps)
    assert sum(one.num_runs for one in report.picked) == 3 * len(orders)
    frequencies = [one.num_runs for one in report.picked]
    assert frequencies == sorted(frequencies, reverse=True)


@pytest.mark.parametrize(("size", "num_free"), [(1, 5), (2, 5), (3, 4), (4, 4), (2, 6)])
def test_chance_is_the_mean_over_all_pairs_of_sets(size: int, num_free: int) -> None:
    sets = [set(chosen) for chosen in combinations(range(num_free), size)]
    shares = [Fraction(len(a & b), len(a | b)) for a in sets for b in sets]
    assert jaccard_by_chance(size, num_free) == pytest.approx(float(sum(shares) / len(shares)))


def test_the_overlap_of_sets_is_shared_by_all() -> None:
    assert jaccard([1, 2, 3], [3, 2, 9]) == 2 / 4
    assert jaccard([1], [1]) == 1
    assert jaccard([1], [2]) == 0


def test_a_removal_is_close_if_its_runner_up_is_within_two_errors() -> None:
    runs = [run_of([1, 2], gap=gap, seed=seed) for seed, gap in enumerate((CLOSE, CLOSE, CLEAR))]
    counts = [(depth.num_close, depth.num_margins) for depth in report_of(*runs).depths]
    assert counts == [(2, 3), (2, 3)]


def test_the_spread_is_of_all_runs() -> None:
    report = report_of(
        run_of([1], perplexities=[10.0, 14.0]),
        run_of([2], perplexities=[10.0, 12.0], seed=1),
        run_of([3], perplexities=[10.0, 19.0], seed=2),
    )
    spread = report.depths[0].perplexities["a.txt"]
    assert (spread.lowest, spread.median, spread.highest) == (12.0, 14.0, 19.0)
    assert report.dense_perplexities == {"a.txt": 10.0}
    assert "12.00 to 19.00 (dense 10.00)" in " ".join(conclusions(report))
    assert "58.3%" in " ".join(conclusions(report))


HEADLINES: Mapping[str, tuple[list[SearchRun], str, tuple[bool, bool]]] = {
    "sets": (
        [run_of([1, 2]), run_of([2, 3], seed=1)],
        (
            "different sets, with a mean overlap of 0.33 (0.24 by chance). "
            "Blocks removed in all runs: 2"
        ),
        (True, True),
    ),
    "nothing shared": ([run_of([1]), run_of([2], seed=1)], "all runs: none.", (True, True)),
    "orders": (
        [run_of([1, 2]), run_of([2, 1], seed=1)],
        "The order is within the noise, the choice is not: 2 runs removed the same 2 blocks, in 2",
        (False, True),
    ),
    "close": (
        [run_of([1, 2], gap=CLOSE), run_of([1, 2], seed=1)],
        (
            "All 2 runs removed the same blocks in the same order, "
            "but some margins are within the noise"
        ),
        (False, True),
    ),
    "clear": (
        [run_of([1, 2]), run_of([1, 2], seed=1)],
        "The order is outside the noise: all 2 runs",
        (False, False),
    ),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_it_says_in_words_what_is_noise(case: str) -> None:
    runs, headline, (is_choice, is_order) = HEADLINES[case]
    report = report_of(*runs)
    assert headline in next(conclusions(report))
    assert (report.is_choice_in_noise, report.is_order_in_noise) == (is_choice, is_order)


def test_it_says_whether_the_text_matters_more_than_the_seed() -> None:
    runs = [run_of([1, 2]), run_of([1, 2], seed=1), run_of([3, 4], text="b.txt")]
    assert "the text matters more" in " ".join(conclusions(report_of(*runs)))
    runs = [run_of([1, 2]), run_of([3, 4], seed=1), run_of([1, 2], text="b.txt")]
    assert "the text matters no more" in " ".join(conclusions(report_of(*runs)))
    assert "text" not in " ".join(list(conclusions(report_of(*runs[:2])))[3:])


def test_samples_that_are_nearly_the_same_are_no_witnesses() -> None:
    same = [run_of([1], windows="abcd"), run_of([1], seed=1, windows="abce")]
    assert report_of(*same).window_overlap == 0.75
    assert "75% of their windows" in " ".join(conclusions(report_of(*same)))
    other = [run_of([1], windows="abcd"), run_of([1], seed=1, windows="efgh")]
    assert report_of(*other).window_overlap == 0.0
    assert "of their windows" not in " ".join(conclusions(report_of(*other)))
    across = [run_of([1], windows="abcd"), run_of([1], text="b.txt", windows="abcd")]
    assert report_of(*across).window_overlap is None


def test_one_window_knows_no_margin() -> None:
    removal = decide(1, 2.5, {1: [3.0], 2: [3.5]})
    runs = [SearchRun("a", seed, (removal,), {"a": (1.0, 2.0)}, (str(seed),)) for seed in range(2)]
    report = stability("tiny", 4, 2, runs)
    assert (report.depths[0].num_close, report.depths[0].num_margins) == (0, 0)
    assert "rounds" not in " ".join(conclusions(report))
    assert "-" in depth_table(report)[1][0]


def test_the_tables_have_a_cell_for_every_heading() -> None:
    report = report_of(run_of([1, 2]), run_of([2, 3], seed=1))
    headings, lines = block_table(report)
    assert lines == [("2", "2 of 2", "1 2"), ("1", "1 of 2", "1"), ("3", "1 of 2", "2")]
    assert len(headings) == 3
    headings, lines = depth_table(report)
    assert [len(line) for line in lines] == [len(headings)] * 2
    assert lines[1] == ("2", "2", "0.33", "0.33", "0.24", "0 of 2", "12.00 to 12.00")


def test_the_wire_has_the_conclusions_and_no_more_than_a_reader_wants() -> None:
    wire = json.loads(json.dumps(to_wire(report_of(run_of([1, 2]), run_of([2, 1], seed=1)))))
    assert wire["conclusions"][0].startswith("The order is within the noise")
    assert [run["seed"] for run in wire["runs"]] == [0, 1]
    assert "windows" not in wire["runs"][0]
    assert "scores" not in wire["runs"][0]["removals"][0]
    assert wire["runs"][0]["removals"][0]["block"] == 1


def test_runs_in_another_order_give_the_same_numbers() -> None:
    runs = [run_of([1, 2]), run_of([3, 2], seed=1), run_of([4, 5], text="b.txt")]
    wanted = report_of(*runs).depths
    for shuffled in permutations(runs):
        found = report_of(*shuffled).depths
        assert [d.num_sets for d in found] == [d.num_sets for d in wanted]
        assert [d.overlap for d in found] == pytest.approx([d.overlap for d in wanted])
