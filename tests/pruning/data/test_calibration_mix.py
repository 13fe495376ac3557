"""Calibration text of several sources: the windows of each, and their report."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.data.calibration import calibrate, held_out
from pruning.data.windows import MAX_EXCERPT, Windows, described, excerpt, mixed
from pruning.models.store import LoadedModel
from pruning.search.state import SearchState
from pruning.spec import InvalidSpec
from pruning.spec.calibration import (
    MAX_SOURCES,
    CalibrationMix,
    CalibrationSpec,
    Dataset,
    Sampling,
    apportioned,
    calibration_from,
)
from pruning.spec.prune import PruneSpec, Resident
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder, Stop

DOGS = CalibrationSpec(Dataset.FILE, num_samples=8, seqlen=8, path="dogs.txt")
SELF = CalibrationSpec(Dataset.SELF, num_samples=8, seqlen=8, seed=3)
MIX = CalibrationMix((DOGS, SELF), (3.0, 1.0))


@pytest.fixture
def mix(tmp_path: Path) -> CalibrationMix:
    dogs, cats = tmp_path / "dogs.txt", tmp_path / "cats.txt"
    dogs.write_text("\n".join(f"{number} lazy dogs" for number in range(200)))
    cats.write_text("\n".join(f"{number} quick cats" for number in range(200)))
    sources = replace(DOGS, path=str(dogs)), replace(DOGS, path=str(cats), seed=5), SELF
    return CalibrationMix(sources, (5.0, 2.0, 1.0))


# ---- shares


weights = st.lists(st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1)


@given(weights=weights.filter(lambda ws: len(ws) <= 64), spare=st.integers(0, 500))
def test_every_sample_goes_to_a_source_and_every_source_gets_one(
    weights: list[float], spare: int
) -> None:
    total = len(weights) + spare
    shares = apportioned(total, weights)
    assert sum(shares) == total
    assert min(shares) >= 1


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=6), samples_each=st.integers(9, 40))
def test_a_share_is_the_quota_or_the_next_number(weights: list[int], samples_each: int) -> None:
    total = samples_each * len(weights)
    shares = apportioned(total, weights)
    for share, weight in zip(shares, weights, strict=True):
        quota = Fraction(total * weight, sum(weights))
        assert share in {math.floor(quota), math.ceil(quota)}


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [
        (16, [2, 1], [11, 5]),
        (16, [1, 1, 1], [6, 5, 5]),  # equal remainders: the first
        (10, [1, 3, 6], [1, 3, 6]),
        (3, [1000, 1, 1], [1, 1, 1]),
        (5, [1000, 1, 1000], [2, 1, 2]),
        (4, [1e308, 1e308], [2, 2]),
        (4, [1e308, 1e-308], [3, 1]),
    ],
)
def test_remainders_go_to_the_largest(total: int, weights: list[float], shares: list[int]) -> None:
    assert apportioned(total, weights) == shares


# ---- the spec


def test_a_mix_survives_json_and_has_a_digest_of_its_own() -> None:
    spec = PruneSpec("tiny", num_remove=1, calibration=MIX)
    data = json.loads(json.dumps(spec.to_dict()))
    assert data["calibration"][0] == {**DOGS.to_wire(), "weight": 3.0}
    again = PruneSpec.from_dict(data)
    assert again == spec
    assert again.digest() == spec.digest()
    digests = {
        replace(spec, calibration=other).digest()
        for other in (MIX, CalibrationMix((DOGS, SELF), (1.0, 1.0)), DOGS)
    }
    assert len(digests) == 3
    assert [type(source.sampling) for source in again.calibration.parts] == [Sampling] * 2


def test_a_source_without_a_weight_weighs_one() -> None:
    mix = calibration_from([DOGS.to_wire(), {**SELF.to_wire(), "weight": 3}])
    assert isinstance(mix, CalibrationMix)
    assert mix.weights == (1.0, 3.0)
    assert [part.num_samples for part in mix.parts] == [2, 6]


BAD: list[tuple[list[CalibrationSpec], list[float], str, str]] = [
    ([], [], "calibration", "0 sources"),
    (
        [replace(DOGS, path=str(n), num_samples=99) for n in range(MAX_SOURCES + 1)],
        [1.0] * (MAX_SOURCES + 1),
        "calibration",
        "65 sources",
    ),
    *(
        ([DOGS, SELF], [1.0, weight], "calibration.1.weight", "above 0")
        for weight in (0.0, -1.0, math.nan, math.inf)
    ),
    ([DOGS, replace(SELF, seqlen=9)], [1, 1], "calibration.1.seqlen", "must have the same value"),
    ([DOGS, replace(SELF, num_samples=9)], [1, 1], "calibration.1.num_samples", "the same"),
    (
        [replace(DOGS, num_samples=1), replace(SELF, num_samples=1)],
        [1, 1],
        "calibration.0.num_samples",
        "too small for 2 sources",
    ),
    ([DOGS, replace(DOGS, seed=1)], [1, 1], "calibration.1", "increase its weight"),
]


@pytest.mark.parametrize(("sources", "weights", "param", "message"), BAD)
def test_a_mix_that_makes_no_sense_is_refused_by_name(
    sources: list[CalibrationSpec], weights: list[float], param: str, message: str
) -> None:
    with pytest.raises(InvalidSpec, match=message) as caught:
        CalibrationMix(tuple(sources), tuple(weights))
    assert caught.value.param == param


def test_streamed_blocks_cannot_write_a_part_of_it_either() -> None:
    with pytest.raises(InvalidSpec, match="the default"):
        PruneSpec("tiny", num_remove=1, calibration=MIX, resident=Resident.STREAM)


# ---- the windows


def test_every_source_gives_its_share_by_its_own_seed(
    tiny_loaded: LoadedModel, mix: CalibrationMix
) -> None:
    windows = calibrate(mix, tiny_loaded.model, tiny_loaded.tokenizer)
    assert windows.token_ids.shape == (8, 8)
    found = {tuple(window) for window in windows.token_ids.tolist()}
    for source, share in zip(mix.sources, (5, 2, 1), strict=True):
        part = calibrate(
            replace(source, num_samples=share), tiny_loaded.model, tiny_loaded.tokenizer
        )
        assert {tuple(window) for window in part.token_ids.tolist()} <= found
    assert "5 × file" in windows.source
    assert "1 × self (seed 3)" in windows.source
    again = calibrate(mix, tiny_loaded.model, tiny_loaded.tokenizer)
    assert again.digest == windows.digest
    assert (
        again.digest
        != calibrate(
            replace(mix, weights=(1.0, 1.0, 1.0)), tiny_loaded.model, tiny_loaded.tokenizer
        ).digest
    )


def test_one_source_is_what_it_is_without_a_mix(
    tiny_loaded: LoadedModel, mix: CalibrationMix
) -> None:
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    alone = CalibrationMix(mix.sources[:1], (7.0,))
    assert calibrate(alone, model, tokenizer).digest == (
        calibrate(mix.sources[0], model, tokenizer).digest
    )


def test_the_first_few_windows_stand_for_the_whole() -> None:
    sizes = (6, 3, 1)
    parts = [
        Windows(torch.full((size, 4), number), str(number)) for number, size in enumerate(sizes)
    ]
    order = mixed(parts).token_ids[:, 0].tolist()
    assert order == [0, 1, 0, 0, 1, 2, 0, 0, 1, 0]
    for seen in range(1, 11):
        for number, size in enumerate(sizes):
            assert abs(order[:seen].count(number) - seen * size / 10) <= 1


def test_it_is_evaluated_on_windows_that_no_source_has_used(
    tiny_loaded: LoadedModel, mix: CalibrationMix
) -> None:
    model, tokenizer = tiny_loaded.model, tiny_loaded.tokenizer
    used = calibrate(mix, model, tokenizer).token_ids.tolist()
    rest = held_out(mix, model, tokenizer)
    assert len(rest.token_ids) == 8
    assert not {tuple(window) for window in used} & {
        tuple(window) for window in rest.token_ids.tolist()
    }
    assert rest.source.count("other windows") == 2


# ---- the report


def test_a_checkpoint_says_what_every_window_begins_with(
    tiny_models_dir: Path, tiny_loaded: LoadedModel, mix: CalibrationMix
) -> None:
    spec = PruneSpec("tiny", num_remove=1, calibration=mix, evaluate=False)
    manifest, path = prune_tiny(tiny_models_dir, spec, "tiny@mixed")
    told: dict[str, Any] = json.loads((path / "calibration.json").read_text())
    windows = told.pop("windows")
    assert told == manifest.calibration
    assert "calibration.json" in manifest.files
    used = calibrate(mix, tiny_loaded.model, tiny_loaded.tokenizer)
    assert told["digest"] == used.digest
    assert len({window["digest"] for window in windows}) == len(windows) == 8
    texts = tiny_loaded.tokenizer.batch_decode(used.token_ids)
    for window, text in zip(windows, texts, strict=True):
        assert window["begins"] == excerpt(text)
        kind, _, name = window["source"].partition(" ")
        assert kind == "self" or text in Path(name).read_text()
    assert [window["source"].split(" ")[0] for window in windows].count("self") == 1


@given(st.text())
def test_no_text_can_do_anything_to_a_terminal(text: str) -> None:
    shown = excerpt(text)
    assert len(shown) <= MAX_EXCERPT
    assert shown.isprintable()


def test_what_a_window_begins_with_is_one_line_of_its_words() -> None:
    assert excerpt("two\nlines\tand \x1b[31mred\x1b[0m\u202e back") == (
        "two lines and [31mred [0m back"
    )
    assert excerpt("word " * 99) == ("word " * 16).strip()


def test_a_source_alone_is_described_too(tiny_loaded: LoadedModel) -> None:
    windows = Windows(torch.arange(3, 19).view(2, 8), "some text")
    told = described(windows, tiny_loaded.tokenizer)
    assert [window["source"] for window in told["windows"]] == ["some text"] * 2


# ---- resuming


def test_a_search_on_a_mix_goes_on_if_no_window_has_changed(
    tiny_models_dir: Path, mix: CalibrationMix
) -> None:
    spec = PruneSpec("tiny", num_remove=2, calibration=mix, evaluate=False)
    first, same, other = Recorder(stop_after=5), Recorder(), Recorder()
    with pytest.raises(Stop):
        prune_tiny(tiny_models_dir, spec, "tiny@stopped", first)
    state: SearchState = first.state
    prune_tiny(tiny_models_dir, spec, "tiny@resumed", same, state)
    assert same.evaluations[0] == (5, 7)
    path = mix.sources[1].path
    assert path is not None
    Path(path).write_text("\n".join(f"{number} slow cats" for number in range(200)))
    prune_tiny(tiny_models_dir, spec, "tiny@anew", other, state)
    assert other.evaluations[0] == (0, 7)
