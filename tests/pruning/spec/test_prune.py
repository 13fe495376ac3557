"""The spec: one target, numbers in their ranges, and a record that all releases can read."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable
from pruning.spec.calibration import CalibrationSpec, Dataset, Sampling, calibration_from
from pruning.spec.heal import Heal
from pruning.spec.prune import Metric, PruneSpec, Quantize, Repair, Resident, Search

TARGETS: Mapping[str, Any] = {
    "num_remove": 2,
    "sparsity": 0.2,
    "max_perplexity_ratio": 1.5,
    "target_speedup": 1.2,
    "target_bytes": 1000,
}
FILE = CalibrationSpec(dataset=Dataset.FILE, path="text.txt")
FULL = PruneSpec(
    "tiny",
    sparsity=0.1,
    calibration=CalibrationSpec(Dataset.C4, Sampling.ROWS, 3, 40, 7),
    protect_first=2,
    protect_last=0,
    dtype="float32",
    evaluate=False,
    search=Search.STAGED,
    resident=Resident.STREAM,
)


@given(st.sets(st.sampled_from(sorted(TARGETS))))
def test_exactly_one_target_is_needed(names: set[str]) -> None:
    targets = {name: TARGETS[name] for name in names}
    if len(names) == 1:
        assert PruneSpec("tiny", **targets).to_dict().items() >= targets.items()
        return
    with pytest.raises(InvalidSpec) as caught:
        PruneSpec("tiny", **targets)
    assert caught.value.param in (names or {"num_remove"})
    assert all(name in str(caught.value) for name in TARGETS)


BAD: list[tuple[str, float, str]] = [
    ("num_remove", 0, "1 or more"),
    ("num_remove", -(10**40), "1 or more"),
    ("sparsity", 0.0, "between 0 and 1"),
    ("sparsity", 1.0, "between 0 and 1"),
    ("max_perplexity_ratio", 1.0, "above 1"),
    ("max_perplexity_ratio", -2.0, "above 1"),
    ("target_speedup", 1.0, "above 1"),
    ("target_speedup", 0.5, "above 1"),
    ("target_bytes", 0, "above 0"),
    *((name, math.nan, "nan: expected") for name in TARGETS),
    *((name, math.inf, "inf: expected") for name in TARGETS),
    *((name, -math.inf, "-inf: expected") for name in TARGETS),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_target_out_of_its_range_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidSpec, match=message) as caught:
        PruneSpec("tiny", **{name: value})
    assert caught.value.param == name


def test_streamed_blocks_cannot_write_the_text_themselves() -> None:
    own_text = CalibrationSpec(Dataset.SELF)
    with pytest.raises(InvalidSpec, match="the default") as caught:
        PruneSpec("tiny", num_remove=1, resident=Resident.STREAM, calibration=own_text)
    assert caught.value.param == "calibration.dataset"
    assert PruneSpec("tiny", num_remove=1, resident=Resident.STREAM, calibration=FILE)
    assert PruneSpec("tiny", num_remove=1, resident=Resident.STREAM)


@pytest.mark.parametrize(
    ("sparsity", "num_blocks", "expected"),
    [(0.2, 32, 7), (0.1, 30, 3), (0.2, 30, 6), (0.25, 4, 1), (0.01, 6, 1), (1e-300, 6, 1)],
)
def test_sparsity_is_rounded_up_as_in_the_paper(
    sparsity: float, num_blocks: int, expected: int
) -> None:
    assert PruneSpec("any", sparsity=sparsity).most_removals(num_blocks) == expected


@pytest.mark.parametrize("name", ["max_perplexity_ratio", "target_speedup", "target_bytes"])
def test_what_only_the_search_shows_may_take_every_free_block(name: str) -> None:
    target: dict[str, Any] = {name: 1.2}
    spec = PruneSpec("any", **target, protect_last=2)
    assert spec.most_removals(8) == 5
    assert spec.num_evaluations(8) == 5 + 4 + 3 + 2 + 1
    assert spec.num_evaluations(8, num_removed=2) == 3 + 2 + 1


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.ONE_SHOT])
def test_a_ranking_takes_a_look_at_every_candidate_and_one_at_every_removal(metric: Metric) -> None:
    spec = PruneSpec("any", num_remove=7, metric=metric)
    assert spec.num_evaluations(32) == 30 + 7
    assert spec.num_evaluations(32, num_removed=2) == 5
    bound = PruneSpec("any", max_perplexity_ratio=1.5, metric=metric)
    assert bound.num_evaluations(8) == 6 + 6


def test_a_model_without_protected_blocks_has_a_candidate_more_than_can_go() -> None:
    spec = PruneSpec("any", num_remove=2, protect_first=0, protect_last=0)
    assert spec.num_evaluations(8) == 8 + 7
    with pytest.raises(TooManyRemovals, match="only 7 can be removed"):
        PruneSpec("any", num_remove=8, protect_first=0, protect_last=0).num_evaluations(8)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_model_without_free_blocks_is_refused_for_every_target(name: str) -> None:
    spec = PruneSpec("any", **{name: TARGETS[name]}, protect_first=4, protect_last=4)
    with pytest.raises(TooManyRemovals, match="only 0 can be removed") as caught:
        spec.num_evaluations(8)
    assert caught.value.param == name


def test_a_speedup_beyond_the_block_count_is_refused_before_anything_is_measured() -> None:
    assert PruneSpec("any", target_speedup=4.0).num_evaluations(8) == 6 + 5 + 4 + 3 + 2 + 1
    with pytest.raises(TargetUnreachable, match="gives at most 4;") as caught:
        PruneSpec("any", target_speedup=4.01).num_evaluations(8)
    assert caught.value.param == "target_speedup"


@given(ratio=st.floats(1.01, 1e6), dense_loss=st.floats(0, 20), share=st.floats(0, 3).filter(abs))
def test_a_perplexity_ratio_is_passed_where_the_perplexities_say_so(
    ratio: float, dense_loss: float, share: float
) -> None:
    spec = PruneSpec("any", max_perplexity_ratio=ratio)
    loss = dense_loss + share * math.log(ratio)
    if abs(share - 1) > 1e-6:
        assert spec.exceeds(loss, dense_loss) == (math.exp(loss) / math.exp(dense_loss) > ratio)
    assert not spec.exceeds(dense_loss, dense_loss)
    assert spec.exceeds(1e9, dense_loss)


def test_only_a_perplexity_ratio_can_be_passed() -> None:
    others = TARGETS.keys() - {"max_perplexity_ratio"}
    assert not any(PruneSpec("any", **{name: TARGETS[name]}).exceeds(9, 1) for name in others)


MEASURED = PruneSpec("m", num_remove=1, quantize=Quantize.INT4, tasks=("piqa",), heal=Heal(rank=2))


@pytest.mark.parametrize(
    "spec", [FULL, MEASURED, *(PruneSpec("m", **{n: v}) for n, v in TARGETS.items())]
)
def test_a_spec_survives_json_and_its_digest_with_it(spec: PruneSpec) -> None:
    again = PruneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.digest() == spec.digest()
    assert again.digest() != PruneSpec("m", num_remove=3).digest()
    assert isinstance(again.search, Search)
    assert isinstance(again.resident, Resident)
    assert type(again.quantize) is type(spec.quantize)
    assert isinstance(again.repair, Repair)


def test_the_digest_of_a_spec_is_what_it_was_before_it_could_have_more_settings() -> None:
    """Manifests contain the digest, which connects a checkpoint with its job."""
    before = "a506ce7071938d5a4733d78df2215a665710310969399516ee93f9552b245c15"
    text = CalibrationSpec(Dataset.SELF, num_samples=16)
    before_them: dict[str, Any] = {"evaluation": None, "save_dtype": None}
    spec = PruneSpec("tiny", 2, calibration=text, repair=Repair.NONE, **before_them)
    assert spec.digest() == before


def test_a_stored_spec_of_an_earlier_default_keeps_its_text_and_digest() -> None:
    spec = PruneSpec("tiny", 2, calibration=CalibrationSpec(Dataset.SELF, num_samples=16))
    again = PruneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.digest() == spec.digest()


def test_without_a_text_a_run_mixes_packaged_prose_and_code() -> None:
    by_default = PruneSpec("tiny", 2).calibration
    assert [part.domain for part in by_default.parts] == ["prose", "code"]
    assert [part.num_samples for part in by_default.parts] == [16, 16]
    assert calibration_from({}) == calibration_from({"dataset": None}) == by_default
    smaller = calibration_from({"num_samples": 6, "seqlen": 8, "seed": 3, "sampling": "rows"})
    assert [part.domain for part in smaller.parts] == ["prose", "code"]
    assert {(part.num_samples, part.seqlen, part.seed) for part in smaller.parts} == {(3, 8, 3)}
    assert {part.sampling for part in smaller.parts} == {Sampling.ROWS}
    with pytest.raises(InvalidSpec, match="expected one of prose") as caught:
        calibration_from([{"dataset": "prose"}, {"seed": 1}])
    assert caught.value.param == "calibration.1.dataset"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"quantize": Quantize.INT8, "evaluate": False}, "quantize"),
        ({"quantize": Quantize.INT4, "resident": Resident.STREAM}, "quantize"),
        ({"tasks": ("piqa",), "resident": Resident.STREAM}, "tasks"),
        ({"heal": Heal(), "resident": Resident.STREAM}, "heal"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidSpec, match=param) as caught:
        PruneSpec("m", num_remove=1, calibration=FILE, **settings)
    assert caught.value.param == param


def test_every_setting_has_a_part_in_the_digest() -> None:
    spec = PruneSpec("m", num_remove=2, calibration=FILE)
    digests = {
        PruneSpec("m", num_remove=2, calibration=FILE, **change).digest()
        for change in (
            {"search": Search.STAGED},
            {"resident": Resident.STREAM},
            {"metric": Metric.COSINE},
            {"metric": Metric.ONE_SHOT},
            {"quantize": Quantize.INT8},
            {"quantize": Quantize.INT4},
            {"tasks": ("piqa",)},
            {"tasks": ("piqa",), "task_questions": 50},
            {"repair": Repair.RIDGE},
            {"repair": Repair.SCALE},
            {"repair": Repair.NONE},
            {"metric": Metric.KL},
            {"heal": Heal()},
            {"heal": Heal(rank=2)},
            {},
        )
    }
    assert len(digests) == 15
    assert spec.digest() in digests


def test_a_record_of_an_earlier_release_takes_the_defaults() -> None:
    calibration = {"dataset": "self", "sampling": "rows", "num_samples": 2, "seqlen": 8, "seed": 1}
    record = {"model": "m", "num_remove": None, "sparsity": 0.2, "calibration": calibration}
    spec = PruneSpec.from_dict(record)
    assert (spec.metric, spec.search, spec.resident, spec.target_speedup) == (
        Metric.SLEB,
        Search.EXACT,
        Resident.MODEL,
        None,
    )
    assert spec.calibration.parts[0].sampling is Sampling.ROWS


def test_a_setting_that_was_removed_is_kept_and_cannot_be_searched_by() -> None:
    record = {"model": "m", "num_remove": 2, "refine": 2, "score_repaired": False}
    older, plain = (PruneSpec.from_dict(record | change) for change in ({}, {"refine": 0}))
    assert plain == PruneSpec.from_dict({"model": "m", "num_remove": 2})
    plain.check_runnable()
    assert older.search_digest() != plain.search_digest()  # their losses do not compare
    assert PruneSpec.from_dict(json.loads(json.dumps(older.to_dict()))) == older
    with pytest.raises(InvalidSpec, match="refine was removed, because exchanges") as refused:
        older.check_runnable()
    assert refused.value.param == "refine"
    unrepaired = PruneSpec("m", num_remove=1, repair=Repair.NONE, evaluation=None, save_dtype=None)
    assert PruneSpec.from_dict({"model": "m", "num_remove": 1}) == unrepaired
