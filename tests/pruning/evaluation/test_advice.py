"""Which depth is advised: the deepest whose intervals keep the limits, and what is said of it."""

from dataclasses import replace

import pytest

from pruning.evaluation.advice import Candidate, Limits, advice_table, advise
from pruning.evaluation.quality import Interval
from pruning.evaluation.results import ItemResult, Kind, compare
from pruning.evaluation.verdict import Verdict
from pruning.spec import InvalidSpec


def candidate(
    num_removed: int, speed: float, prose: float, *, half: float = 0.01, is_measured: bool = True
) -> Candidate:
    speedup = Interval(speed, speed - half, speed + half) if is_measured else None
    return Candidate(
        name=f"m@-{num_removed}",
        num_removed=num_removed,
        num_blocks=30 - num_removed,
        speedup=speedup or Interval(speed, None, None),
        is_measured=is_measured,
        ratios={
            "prose": Interval(prose, prose - half, prose + half),
            "code": Interval(1.01, 1.0, 1.02),
        },
        parameters=1 - num_removed / 40,
    )


SHALLOW = candidate(2, 1.06, 1.01)
MIDDLE = candidate(4, 1.13, 1.03)
DEEP = candidate(6, 1.2, 1.2)
ALL = (DEEP, SHALLOW, MIDDLE)


def test_the_deepest_depth_that_keeps_the_limits_is_taken() -> None:
    advice = advise("m", ALL, Limits())
    assert (advice.taken, advice.nearest) == ("m@-4", None)
    assert advice.sentence == (
        "Use m@-4: 1.13 × as fast per token (measured, 1.12 to 1.14), 10 % fewer parameters; "
        "perplexity on prose 1.03 × (1.02 to 1.04), code 1.01 × (1.00 to 1.02) relative to the "
        "dense model. "
        "Not deeper: @-6 would be another 0.07 × faster, but prose 1.20 × (1.19 to 1.21) is beyond "
        "1.05."
    )
    verdicts = [depth.verdict for depth in advice.depths]
    assert verdicts == [Verdict.EXCEEDED, Verdict.KEPT, Verdict.EXCEEDED]
    assert advice.depths[0].because == "speed 1.06 × (1.05 to 1.07) is below 1.1"
    assert advice.missing == ()


def test_none_of_the_depths_is_an_answer() -> None:
    advice = advise("m", ALL, Limits(max_ratio=1.02, min_speedup=1.1))
    assert advice.taken is None
    assert advice.sentence.startswith("None of the 3 depths of m is shown to meet the limits (at ")
    assert "The closest is @-4: 1.13 × as fast" in advice.sentence
    assert advice.nearest == "m@-4"
    assert advice.sentence.endswith("It is not shown to meet the limit on prose.")
    alone = advise("m", (MIDDLE,), Limits(max_ratio=1.02)).sentence
    assert alone.startswith("The only known depth of m is not shown to meet the limits (at ")
    assert "It is @-4: 1.13 × as fast" in alone
    empty = advise("m", (), Limits())
    assert (empty.nearest, empty.sentence) == (None, "m has no pruned variants yet.")
    assert "sleb prune m" in advise("m", (), Limits()).missing[0]


def test_an_interval_that_contains_a_limit_takes_nothing() -> None:
    wide = candidate(4, 1.13, 1.03, half=0.04)
    advice = advise("m", (wide,), Limits())
    assert (advice.taken, advice.depths[0].verdict) == (None, Verdict.UNDECIDED)
    assert advice.missing == (
        "the speed-up of @-4 is too uncertain: run `sleb bench m --variants @-4`",
    )
    assert "speed 1.13 × (1.09 to 1.17) is undecided at 1.1" in advice.depths[0].because
    costly = candidate(4, 1.13, 1.3, half=0.04)
    assert advise("m", (costly,), Limits()).missing == (), "no measurement of speed changes this"


def test_a_healed_model_is_taken_before_one_of_the_same_depth() -> None:
    healed = replace(candidate(4, 1.13, 1.015), name="m@prn-1+healed")
    assert advise("m", (MIDDLE, healed), Limits()).taken == "m@prn-1+healed"
    assert healed.short_name == "@prn-1+healed"


def test_what_is_predicted_or_unknown_is_named_with_its_command() -> None:
    advice = advise("m", (candidate(4, 1.13, 1.03, is_measured=False),), Limits(min_probe=0.5))
    assert advice.taken is None
    assert advice.depths[0].because == "its probe score is not measured"
    bench, probe = advice.missing
    assert "`sleb bench m --variants @-4`" in bench
    assert "`sleb eval m@-4 --tasks probe`" in probe
    known = advise("m", (candidate(4, 1.13, 1.03, is_measured=False),), Limits())
    assert "1.13 × as fast per token (predicted)" in known.sentence


def test_without_quality_no_depth_is_taken() -> None:
    blind = replace(MIDDLE, ratios={})
    advice = advise("m", (blind,), Limits())
    assert (advice.taken, advice.depths[0].because) == (None, "its quality is not measured")
    too_few = replace(MIDDLE, ratios={"prose": Interval(1.0, None, None)})
    assert advise("m", (too_few,), Limits()).depths[0].verdict is Verdict.UNDECIDED


def test_a_probe_below_its_limit_is_refused() -> None:
    right = [ItemResult(Kind.JSON, is_chosen=True, is_written=True)] * 4
    half = [ItemResult(Kind.JSON, is_chosen=True, is_written=False)] * 4
    probed = replace(MIDDLE, probe=compare(right, half, "d"))
    assert advise("m", (probed,), Limits(min_probe=0.4)).taken == "m@-4"
    refused = advise("m", (probed,), Limits(min_probe=0.6))
    assert refused.depths[0].because == "probe score 0.50 is below 0.6"
    headings, [row] = advice_table(refused)
    assert headings == ("depth", "speed-up", "prose", "code", "probe", "keeps")
    assert row[:2] == ("@-4", "1.13 (1.12-1.14)")
    assert row[-2:] == ("0.50 of 1.00", "no: probe")


@pytest.mark.parametrize("given", [{"max_ratio": 0.9}, {"min_speedup": 0.5}, {"min_probe": 2.0}])
def test_limits_that_nothing_can_keep_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        Limits(**given)
    assert caught.value.param == next(iter(given))
