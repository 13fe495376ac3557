"""Quality as data: paired errors, intervals, what is served, and what older manifests lack."""

import json
import math
from dataclasses import asdict, replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.checkpoints.store import Manifest
from pruning.confidence import reach
from pruning.evaluation.quality import (
    DomainQuality,
    Interval,
    Measured,
    Quality,
    interval_of,
    perplexity_of,
)
from tests.support.pruning_runs import RUN

DENSE = (3.0, 4.0, 5.0, 3.0, 5.0)
PROSE = DomainQuality(
    domain="prose",
    source="packaged prose",
    num_windows=5,
    seqlen=8,
    digest="c0ffee",
    dense=Measured.of_dense(DENSE),
    raw=(
        Measured.against(DENSE, (3.5, 4.5, 5.5, 3.5, 5.5)),
        Measured.against(DENSE, (4.0, 5.5, 6.0, 4.0, 6.5)),
    ),
    repaired=(None, Measured.against(DENSE, (3.25, 4.5, 5.5, 3.5, 5.5))),
)
QUARTER_WORSE = tuple(loss + 0.25 for loss in DENSE)
nats = st.floats(0.1, 20.0)


def test_the_error_is_that_of_paired_differences() -> None:
    first, second = PROSE.raw
    assert (first.loss, first.standard_error) == (4.5, 0.0)
    assert second.standard_error == pytest.approx(math.sqrt(0.3 / 4 / 5))  # of 1, 1.5, 1, 1, 1.5
    assert PROSE.dense.loss == 4.0
    assert PROSE.dense.standard_error == pytest.approx(math.sqrt(4 / 4 / 5))


def test_an_interval_extends_by_the_reach_of_its_degrees() -> None:
    interval = PROSE.ratio(PROSE.raw[1])
    margin = reach(4) * math.sqrt(0.3 / 4 / 5)
    assert interval.value == pytest.approx(math.exp(1.2))
    assert interval.low == pytest.approx(math.exp(1.2 - margin))
    assert interval.high == pytest.approx(math.exp(1.2 + margin))
    assert PROSE.ratio(PROSE.dense) == Interval(1, 1, 1)
    dense = PROSE.dense_perplexity()
    assert dense.value == PROSE.dense.perplexity == math.exp(4)
    assert dense.high == pytest.approx(math.exp(4 + reach(4) / math.sqrt(5)))


def test_one_window_has_no_interval() -> None:
    single = replace(PROSE, num_windows=1, raw=(Measured.against([3.0], [3.5]),))
    assert single.raw[0].standard_error is None
    assert single.ratio(single.raw[0]).low is None
    assert single.ratio(single.raw[0]).high is None


def test_four_windows_are_too_few_for_an_interval() -> None:
    four = (3.0, 5.0, 4.0, 4.5)
    few = replace(PROSE, num_windows=4, dense=Measured.of_dense(four))
    assert few.dense_perplexity() == Interval(few.dense.perplexity, None, None)
    assert few.ratio(replace(PROSE.raw[1], degrees=None)).low is None
    assert interval_of(four).high is None
    assert interval_of((*four, 4.0)).high is not None


def test_no_perplexity_is_below_one() -> None:
    """The mean of these losses is 1 nat or so, with a margin of more than that."""
    losses = (0.1, 0.2, 3.0, 0.1, 2.0)
    assert interval_of(losses).low == 1.0
    dense = replace(PROSE, dense=Measured.of_dense(losses))
    assert dense.dense_perplexity().low == 1.0
    assert (dense.ratio(Measured(1.1, 1.0)).low or 1.0) < 1.0


def test_what_is_served_is_repaired_where_repair_was_chosen() -> None:
    assert PROSE.served_after(0) is PROSE.dense
    assert PROSE.served_after(1) is PROSE.raw[0]
    assert PROSE.served_after(2) is PROSE.repaired[1]
    assert [PROSE.recovered_after(step) for step in (1, 2)] == [0, pytest.approx(0.75 / 1.2)]
    assert PROSE.recovered_after(0) is None
    without = replace(PROSE, repaired=())
    assert without.served_after(2) is PROSE.raw[1]


def test_a_healed_model_is_served_where_all_blocks_are_removed() -> None:
    healed, control = (Measured.against(DENSE, losses) for losses in (QUARTER_WORSE, DENSE))
    domain = replace(PROSE, healed=(None, healed), control=control)
    assert domain.served_after(2) is healed
    assert domain.unhealed_after(2) is PROSE.repaired[1]
    assert [domain.served_after(number) for number in (0, 1)] == [PROSE.dense, PROSE.raw[0]]
    assert domain.healed_share(2) == pytest.approx(1 - 0.25 / 1.2)
    assert domain.recovered_after(2) == PROSE.recovered_after(2)
    found = domain.at_depth(2)
    assert found.healed is not None
    assert found.healed.ratio == domain.ratio(healed)
    assert found.control is not None
    assert found.control.ratio.value == 1
    assert domain.at_depth(1).healed is domain.at_depth(1).control is None
    assert PROSE.healed_share(2) is None
    manifest = replace(RUN, quality=replace(RUN.quality, domains=(domain,)))
    assert Manifest.from_json(manifest.to_json()) == manifest
    old = {**asdict(domain), "healed": asdict(healed)}
    assert DomainQuality.from_dict(old) == domain


def test_a_domain_may_be_healed_at_every_depth() -> None:
    losses = (tuple(loss + 0.125 for loss in DENSE), QUARTER_WORSE)
    healed = tuple(Measured.against(DENSE, found) for found in losses)
    domain = replace(PROSE, healed=healed)
    assert [domain.served_after(number) for number in (0, 1, 2)] == [PROSE.dense, *healed]
    assert domain.healed_share(1) == pytest.approx(1 - 0.125 / 0.5)
    assert domain.at_depth(1).healed is not None
    assert domain.has_depths(2)
    assert not replace(domain, healed=healed[:1]).has_depths(2)


def test_a_domain_names_its_text() -> None:
    assert PROSE.text == "packaged prose, 5 windows of 8 tokens"


@given(st.lists(st.tuples(nats, nats), min_size=5, max_size=8))
def test_the_dense_model_against_itself_is_certain(pairs: list[tuple[float, float]]) -> None:
    dense, other = zip(*pairs, strict=True)
    domain = replace(PROSE, num_windows=len(pairs), dense=Measured.of_dense(dense))
    itself = domain.ratio(Measured.against(dense, dense))
    assert (itself.low, itself.value, itself.high) == (1, 1, 1)
    shifted = domain.ratio(Measured.against(dense, [loss + 1 for loss in dense]))
    assert shifted.value == pytest.approx(math.e)
    assert shifted.high == pytest.approx(math.e)
    found = domain.ratio(Measured.against(dense, other))
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(math.exp(fmean(other) - fmean(dense)))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_broken_model_has_a_perplexity_that_can_be_written(loss: float) -> None:
    broken = Measured.against(DENSE, (loss, *DENSE[1:]))
    assert not broken.perplexity <= perplexity_of(600)
    assert not PROSE.ratio(broken).value <= perplexity_of(600)
    assert json.dumps(asdict(broken))


def test_a_manifest_keeps_the_domains() -> None:
    manifest = replace(RUN, quality=replace(RUN.quality, domains=(PROSE,)))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_from_before_domains_has_none() -> None:
    before = json.loads(RUN.to_json())
    del before["quality"]["domains"]
    assert Manifest.from_json(json.dumps(before)) == RUN
    assert Quality.from_dict(before["quality"]).domains == ()
