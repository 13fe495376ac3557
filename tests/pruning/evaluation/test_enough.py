"""How many windows an evaluation takes: by intervals, time, text and limits of a gate."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

from pruning.confidence import reach
from pruning.data.windows import Windows, mixed
from pruning.evaluation.enough import UntilKnown
from pruning.evaluation.quality import DomainQuality, Measured, Quality
from pruning.evaluation.results import Ended, Extent
from pruning.spec import InvalidSpec
from pruning.spec.evaluation import FIRST_WINDOWS, Evaluation
from pruning.spec.prune import PruneSpec


def domain(name: str, num_windows: int, error: float | None, loss: float = 2.1) -> DomainQuality:
    served = (Measured(loss, error),)
    return DomainQuality(name, "text", num_windows, 8, "d", Measured(2.0, 0.1), served)


def until(
    evaluation: Evaluation, *, spent_s: float = 1.0, undecided: int | None = None
) -> UntilKnown:
    times: Iterator[float] = iter((0.0, spent_s))
    return UntilKnown(evaluation, lambda _domains: undecided, lambda: next(times))


PLENTY = {"prose": 500, "code": 500}


def sizes(
    enough: UntilKnown, *domains: DomainQuality, available: Mapping[str, int] = PLENTY
) -> tuple[Mapping[str, int], Ended | None]:
    found = enough.next_sizes(domains, available)
    return found, enough.extent.ended if enough.extent else None


def test_only_a_domain_with_a_wide_interval_gets_more_windows() -> None:
    narrow, wide = domain("prose", 16, 0.008), domain("code", 16, 0.03)
    found, ended = sizes(until(Evaluation()), narrow, wide)
    assert (found, ended) == ({"code": 32}, None)  # not more than twice as many
    assert sizes(until(Evaluation()), narrow) == ({}, Ended.MARGIN)
    assert sizes(until(Evaluation(margin=0.15)), narrow, wide) == ({}, Ended.MARGIN)


def test_an_interval_that_is_nearly_narrow_gets_as_many_windows_as_it_lacks() -> None:
    error = 0.01
    factor = (reach(15) * error / math.log(1.03)) ** 2
    assert 1 < factor < 1.9
    nearly = domain("prose", 16, error)
    assert sizes(until(Evaluation()), nearly)[0] == {"prose": math.ceil(16 * 1.05 * factor)}


def test_the_time_ends_it_by_the_pace_so_far() -> None:
    wide = domain("prose", 16, 0.03)
    found, ended = sizes(until(Evaluation(max_seconds=1.5), spent_s=1.0), wide)
    assert (found, ended) == ({"prose": 24}, None)  # 16 took a second, and half a second is left
    assert sizes(until(Evaluation(max_seconds=1), spent_s=1.0), wide) == ({}, Ended.TIME)


def test_the_text_ends_it() -> None:
    wide = domain("prose", 16, 0.03)
    assert sizes(until(Evaluation()), wide, available={"prose": 20})[0] == {"prose": 20}
    assert sizes(until(Evaluation()), wide, available={"prose": 16}) == ({}, Ended.TEXT)


def test_an_undecided_limit_asks_for_twice_as_many() -> None:
    narrow = domain("prose", 16, 0.001)
    enough = until(Evaluation(), undecided=1)
    assert sizes(enough, narrow) == ({"prose": 32}, None)


def test_a_number_of_windows_is_taken_at_once() -> None:
    enough = until(Evaluation(num_samples=5), undecided=1)
    assert enough.at_first(100) == 5
    assert sizes(enough, domain("prose", 5, 1.0)) == ({}, Ended.NUMBER)
    assert until(Evaluation()).at_first(100) == FIRST_WINDOWS


def test_a_broken_model_is_not_measured_for_ever() -> None:
    broken = domain("prose", 16, None, math.inf)
    assert sizes(until(Evaluation()), broken)[0] == {}
    few = domain("prose", 2, None)
    assert sizes(until(Evaluation()), few)[0] == {"prose": 4}


def test_all_depths_have_the_windows_of_the_one_that_lacks_most() -> None:
    served = (Measured(2.1, 0.001), Measured(2.4, 0.1), Measured(2.4, 0.001))
    of_domain = replace(domain("prose", 16, 0.001), raw=served)
    assert sizes(until(Evaluation()), of_domain)[0] == {"prose": 32}


def test_the_manifest_keeps_how_it_ended() -> None:
    extent = Extent(Ended.TIME, 0.05, 30.0)
    data = {"losses": [1.0], "perplexities": [], "evaluated_on": ""}
    assert Quality.from_dict(data).extent is None
    kept = Quality.from_dict(
        {**data, "extent": {"ended": "time", "margin": 0.05, "max_seconds": 30.0}}
    )
    assert kept.extent == extent
    assert str(extent) == "stopped after 30 s, before every ratio was known to ±5 %"


def test_the_first_windows_of_a_mix_name_what_they_are_from() -> None:
    parts = [Windows(torch.full((number, 4), number), f"text {number}", "d") for number in (2, 4)]
    first = mixed(parts).first(3)
    assert first.token_ids.tolist() == [[4] * 4, [2] * 4, [4] * 4]
    assert first.source == "2 × text 4 + 1 × text 2"
    assert first.domains == ("d", "d", "d")


def test_a_spec_keeps_its_evaluation_and_that_of_an_earlier_release() -> None:
    spec = PruneSpec("m", 1, evaluation=Evaluation(num_samples=7, seqlen=9))
    assert PruneSpec.from_dict(spec.to_dict()) == spec
    assert spec.search_digest() == PruneSpec("m", 1).search_digest()
    before = {name: value for name, value in spec.to_dict().items() if name != "evaluation"}
    assert PruneSpec.from_dict(before).evaluation is None


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"seqlen": 1}, "seqlen"),
        ({"margin": 0.0}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"max_seconds": -1.0}, "max_seconds"),
        ({"num_samples": 100_000, "seqlen": 1_000_000}, "num_samples"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, float], param: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Evaluation(**given)  # type: ignore[arg-type]  # any of them
    assert caught.value.param == f"evaluation.{param}"
