"""How many windows an evaluation takes: by intervals, time, text and limits of a gate."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch

import pruning.evaluation.enough
from pruning.data.windows import Windows, mixed
from pruning.evaluation.enough import Sizes, UntilKnown
from pruning.evaluation.estimate import MIN_PAIRS
from pruning.evaluation.quality import DomainQuality, Measured, Quality
from pruning.evaluation.results import Ended, Extent
from pruning.spec import InvalidSpec
from pruning.spec.evaluation import Evaluation
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
) -> tuple[Sizes, Ended | None]:
    found = enough.next_sizes(domains, available)
    return found, enough.extent.ended if enough.extent else None


def test_only_a_domain_with_a_wide_interval_gets_more_windows() -> None:
    narrow, wide = domain("prose", 16, 0.01), domain("code", 16, 0.03)
    found, ended = sizes(until(Evaluation()), narrow, wide)
    assert ended is None
    assert found.keys() == {"code"}
    # t(15) * 0.03 = 0.0639, wanted log(1.03) = 0.0296: (0.0639 / 0.0296)² * 1.05 * 16 = 78.6
    assert found["code"] == {1: 33}  # not more than twice as many, and one
    assert sizes(until(Evaluation()), narrow) == ({}, Ended.MARGIN)
    assert sizes(until(Evaluation(margin=0.1)), narrow, wide) == ({}, Ended.MARGIN)


def test_the_time_ends_it_by_the_pace_so_far() -> None:
    wide = domain("prose", 16, 0.03)
    found, ended = sizes(until(Evaluation(max_seconds=1.5), spent_s=1.0), wide)
    assert (found, ended) == ({"prose": {1: 24}}, None)  # 16 a second in both, 0.5 s are left
    assert sizes(until(Evaluation(max_seconds=1), spent_s=1.0), wide) == ({}, Ended.TIME)


def test_the_text_ends_it() -> None:
    wide = domain("prose", 16, 0.03)
    assert sizes(until(Evaluation()), wide, available={"prose": 20})[0] == {"prose": {1: 20}}
    assert sizes(until(Evaluation()), wide, available={"prose": 16}) == ({}, Ended.TEXT)


def test_an_undecided_limit_asks_for_twice_as_many() -> None:
    narrow = domain("prose", 16, 0.001)
    enough = until(Evaluation(), undecided=1)
    assert sizes(enough, narrow) == ({"prose": {1: 32}}, None)


def test_a_number_of_windows_is_taken_at_once() -> None:
    enough = until(Evaluation(num_samples=5), undecided=1)
    assert enough.at_first(100) == 5
    assert sizes(enough, domain("prose", 5, 1.0)) == ({}, Ended.NUMBER)
    assert until(Evaluation()).at_first(100) == pruning.evaluation.enough.FIRST_WINDOWS


def test_a_broken_model_is_not_measured_for_ever() -> None:
    broken = domain("prose", 16, None, math.inf)
    assert sizes(until(Evaluation()), broken)[0] == {}
    few = domain("prose", 2, None)
    assert sizes(until(Evaluation()), few)[0] == {"prose": {1: 5}}


def test_differences_on_fewer_windows_are_added_to_the_loss_of_the_dense_model() -> None:
    dense, some = (1.0, 2.0, 3.0, 6.0), (1.1, 2.3, 3.2)
    measured = Measured.against(dense, some)
    assert measured.loss == pytest.approx(3.0 + 0.2)
    assert measured.num_windows == 3
    of_domain = DomainQuality("d", "text", 4, 8, "d", Measured.of_dense(dense), (measured,))
    alone = replace(of_domain, num_windows=3, raw=(Measured.against(dense[:3], some),))
    alone = replace(alone, dense=Measured.of_dense(dense[:3]))
    found, expected = of_domain.ratio(measured), alone.ratio(alone.raw[0])
    assert (found.value, found.low) == pytest.approx((expected.value, expected.low))


def deeper(*served: Measured) -> DomainQuality:
    return DomainQuality("prose", "text", 16, 8, "d", Measured(2.0, 0.1), served)


def test_the_deepest_gets_windows_before_the_others() -> None:
    wide = Measured(2.4, 0.1)
    of_domain = deeper(wide, Measured(2.4, 0.016, 8))
    # t(7) * 0.016 = 0.0378 is 1.28 times what is wanted: 1.28² * 1.05 * 8 = 13.8, and one
    assert sizes(until(Evaluation()), of_domain)[0] == {"prose": {2: 15}}
    undecided = sizes(until(Evaluation(), undecided=2), of_domain)[0]
    assert undecided == {"prose": {2: 15}}, "it gets more windows already"
    used_up = sizes(until(Evaluation()), deeper(wide, wide), available={"prose": 16})
    assert used_up == ({}, Ended.TEXT)
    shallow = deeper(Measured(2.4, 0.1, 8), wide)
    assert sizes(until(Evaluation()), shallow, available={"prose": 16})[0] == {"prose": {1: 16}}


def test_an_undecided_depth_gets_twice_as_many_and_the_deepest_no_fewer() -> None:
    few, many = deeper(Measured(2.1, 0.001, 4), NARROW), deeper(Measured(2.1, 0.001, 12), NARROW)
    assert sizes(until(Evaluation(), undecided=1), few)[0] == {"prose": {1: 8}}
    assert sizes(until(Evaluation(), undecided=1), many)[0] == {"prose": {2: 24}}
    known = sizes(until(Evaluation(), undecided=1), few, available={"prose": 4})
    assert known == ({}, Ended.TEXT)


def test_each_depth_gets_as_many_windows_as_it_lacks() -> None:
    of_domain = deeper(Measured(2.1, 0.001), Measured(2.4, 0.1), Measured(2.4, 0.018), NARROW)
    # t(15) * 0.018 = 0.0384 is 1.30 times what is wanted: 1.30² * 1.05 * 16 = 28.3, and one
    assert sizes(until(Evaluation()), of_domain)[0] == {"prose": {2: 33, 3: 30}}


NARROW = Measured(2.4, 0.001)


def test_a_depth_stops_for_the_help_of_the_deepest() -> None:
    wide = Measured(2.4, 0.1, 17)
    many = replace(deeper(wide, NARROW), num_windows=60)
    assert sizes(until(Evaluation()), many)[0] == {"prose": {1: MIN_PAIRS}}
    few = replace(deeper(wide, NARROW), num_windows=MIN_PAIRS)
    assert sizes(until(Evaluation()), few)[0] == {"prose": {1: 35}}
    later = replace(deeper(replace(wide, num_windows=MIN_PAIRS), NARROW), num_windows=60)
    assert sizes(until(Evaluation()), later)[0] == {"prose": {1: 2 * MIN_PAIRS + 1}}


def test_windows_make_smaller_only_what_the_control_does_not_explain() -> None:
    # t(6) * 0.014 = 0.0343 is 1.159 times what is wanted; 0.4 of the error squared is the control's
    error, of_control = 0.014, 0.014 * math.sqrt(0.4)
    controlled = Measured(2.4, error, 7, 6, of_control)
    # own windows make 0.6 into 1 / 1.159² - 0.4 = 0.344: 0.6 / 0.344 * 1.05 * 7 = 12.8, and one
    assert sizes(until(Evaluation()), deeper(controlled, NARROW))[0] == {"prose": {1: 14}}
    as_many = replace(controlled, num_windows=8, control_error=0.9 * error)
    # 0.81 of it is more than 0.9 / 1.159²: the control gets 0.81 / 0.67 * 1.05 * 16 = 20.3, and one
    assert sizes(until(Evaluation()), deeper(as_many, NARROW))[0] == {"prose": {1: 17, 2: 22}}
    used_up = sizes(until(Evaluation()), deeper(as_many, NARROW), available={"prose": 16})[0]
    assert used_up == {"prose": {1: 13}}, "then it needs its own: 1.159² * 1.05 * 8 = 11.3, and one"


def test_the_manifest_keeps_how_it_ended() -> None:
    extent = Extent(Ended.TIME, 0.05, 30.0)
    data = {"losses": [1.0], "perplexities": [], "evaluated_on": ""}
    assert Quality.from_dict(data).extent is None
    kept = Quality.from_dict(
        {**data, "extent": {"ended": "time", "margin": 0.05, "max_seconds": 30.0}}
    )
    assert kept.extent == extent
    assert str(extent) == "30 s were spent before every ratio was known to ±5 %"


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
