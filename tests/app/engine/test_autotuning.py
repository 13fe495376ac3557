"""The fastest way is chosen once for a shape and a processor, and all ways give the same tokens."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numba
import pytest
import torch

from app.config import ServeSettings
from app.engine import tuning
from app.engine.attention import FUSED, PRODUCTS
from app.engine.compiled.model import BLOCKS
from app.engine.compiled.product import PRODUCTS_OF_ROWS
from app.engine.engine import Engine
from app.engine.flat_model import AROUND, AROUND_BOTH, COMPILED, FLAT
from app.engine.head import COMPILED_HEAD, TORCH
from app.engine.row_kernels import NATIVE, ONE_DNN
from app.engine.tuning import OFF, Tuner, processor, size_of
from pruning.models.architectures import ARCHITECTURES
from tests.support.engine_requests import expected, prompt, request, run, variant
from tests.support.serving import local_api

SLOW, FAST = "slow", "fast"
FLOAT = torch.float32
WAYS = (
    (FUSED, ONE_DNN, FLAT, TORCH),
    (PRODUCTS, NATIVE, COMPILED, AROUND, COMPILED_HEAD),
    (AROUND,),
    (AROUND_BOTH,),
    (),
)


class Ways:
    """A product of large matrices and one of small ones, and how often each has run."""

    def __init__(self) -> None:
        self.num_runs = {SLOW: 0, FAST: 0}
        self._matrices = {SLOW: torch.ones(256, 256), FAST: torch.ones(2, 2)}

    def of(self, *names: str) -> dict[str, Callable[[], object]]:
        return {name: partial(self._run, name) for name in names}

    def _run(self, name: str) -> torch.Tensor:
        self.num_runs[name] += 1
        return self._matrices[name] @ self._matrices[name]


@pytest.mark.parametrize("names", [(SLOW, FAST), (FAST, SLOW)])
def test_the_fastest_is_found_once_for_each_shape(names: tuple[str, str]) -> None:
    ways, tuner = Ways(), Tuner()
    assert tuner.fastest("a", (4, 8), FLOAT, ways.of(*names)) == FAST
    before = dict(ways.num_runs)
    assert tuner.fastest("a", (4, 8), FLOAT, ways.of(*names)) == FAST
    assert ways.num_runs == before
    for name, shape, dtype in (
        ("b", (4, 8), FLOAT),
        ("a", (4, 9), FLOAT),
        ("a", (4, 8), torch.half),
    ):
        tuner.fastest(name, shape, dtype, ways.of(*names))
    assert len(tuner.choices) == 4
    seconds = tuner.choices["a 4x8 float32"].seconds
    assert 0 < seconds[FAST] < seconds[SLOW]


def test_without_tuning_the_first_is_taken_and_none_is_run() -> None:
    ways = Ways()
    assert OFF.fastest("a", (1,), FLOAT, ways.of(SLOW, FAST)) == SLOW
    assert Tuner(always=frozenset({FAST})).fastest("a", (1,), FLOAT, ways.of(SLOW, FAST)) == FAST
    assert not any(ways.num_runs.values())


def test_equal_ways_do_not_take_turns_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another way has to be worth it, or rounding would change from one start to the next."""
    monkeypatch.setattr(tuning, "_WORTH", 0.0)
    assert Tuner().fastest("a", (1,), FLOAT, Ways().of(SLOW, FAST)) == SLOW


def test_choices_are_kept_for_this_processor_beside_those_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, ways = tmp_path / "tuning.json", Ways()
    assert Tuner(file).fastest("a", (1,), FLOAT, ways.of(SLOW, FAST)) == FAST
    before = dict(ways.num_runs)
    assert Tuner(file).fastest("a", (1,), FLOAT, ways.of(SLOW, FAST)) == FAST
    assert ways.num_runs == before
    monkeypatch.setattr(tuning, "processor", lambda: "another")
    assert Tuner(file).choices == {}
    assert Tuner(file).fastest("a", (1,), FLOAT, ways.of(SLOW, FAST)) == FAST
    assert ways.num_runs != before
    assert json.loads(file.read_text()).keys() == {processor(), "another"}
    assert Tuner(file, is_on=False).fastest("a", (1,), FLOAT, ways.of(SLOW, FAST)) == SLOW


def test_a_way_that_is_there_no_more_is_chosen_anew(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    Tuner(file).fastest("a", (1,), FLOAT, Ways().of(SLOW, FAST))
    assert Tuner(file).fastest("a", (1,), FLOAT, Ways().of(SLOW)) == SLOW


BROKEN_CHOICES = [
    1,
    {"way": "fast"},
    {"way": "fast", "seconds": {}},
    {"way": "fast", "seconds": {"fast": "soon"}},
    {"way": "fast", "seconds": {"fast": 0}},
    {"way": [], "seconds": {"fast": 1}},
]


def check_written_again(file: Path) -> None:
    assert Tuner(file).choices == {}
    assert Tuner(file).fastest("a", (1,), FLOAT, Ways().of(SLOW, FAST)) == FAST
    assert Tuner(file).choices.keys() == {"a 1 float32"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\x00"])
def test_a_broken_file_is_written_again(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "tuning.json").write_text(text)
    check_written_again(file)


def test_a_choice_is_made_again_when_there_is_another_way(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    assert Tuner(file).fastest("a", (1,), FLOAT, Ways().of(SLOW)) == SLOW
    assert Tuner(file).fastest("a", (1,), FLOAT, Ways().of(SLOW, FAST)) == FAST


@pytest.mark.parametrize("choice", BROKEN_CHOICES)
def test_a_broken_choice_is_made_again(tmp_path: Path, choice: object) -> None:
    (file := tmp_path / "tuning.json").write_text(
        json.dumps({processor(): {"a 1 float32": choice}})
    )
    check_written_again(file)


def test_a_file_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tuning.json").mkdir()
    tuner = Tuner(tmp_path / "tuning.json")
    for size in (1, 2):
        assert tuner.fastest("a", (size,), FLOAT, Ways().of(SLOW, FAST)) == FAST
    assert [record.message[:34] for record in caplog.records] == [
        "the choices of kernels are not kept"[:34]
    ]


def test_sizes_are_powers_of_two() -> None:
    assert [size_of(number) for number in (0, 1, 2, 3, 4, 5, 64, 65)] == [1, 1, 2, 4, 4, 8, 64, 128]


def test_a_service_keeps_its_choices_by_default_and_makes_none_if_that_is_off(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(each[FLOAT].is_ready() for each in (BLOCKS, PRODUCTS_OF_ROWS))
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # the service sets it for the process
    default, kept = ServeSettings.model_fields["tune"].default, settings.data_dir / "tuning.json"
    for tune, is_kept in (("off", False), (default, True)):
        with local_api(settings, redis_url, tune=tune) as client:
            for model in ("tiny", "tiny+int8"):
                body = {"model": model, "prompt": "the dog", "max_new_tokens": 2}
                assert client.post("/generate", json=body).status_code == 200
        assert kept.exists() == is_kept
        assert len([*settings.data_dir.glob("compiled-*")]) == is_kept
    choices = json.loads(kept.read_text())[processor()]
    names = {key.rsplit(" ", 2)[0] for key in choices}
    assert {"a prompt", "int8 products", "blocks", "quantized blocks", "head"} <= names


@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_whatever_is_chosen_gives_the_tokens_of_generate(
    family: str, ways: tuple[str, ...]
) -> None:
    tuner = Tuner(always=frozenset(ways))
    requests = [
        request(prompt(length, length), variant(pruned, family), max_new_tokens=6)
        for length, pruned in ((3, False), (40, False), (9, True))
    ]
    outcome = run(Engine(tuner=tuner), *requests)
    assert [outcome.of(each) for each in requests] == [expected(each) for each in requests]
    assert bool(tuner.choices) == (len(ways) < 4)
