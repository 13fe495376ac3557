"""The fastest kernel is found once for a key and a processor. All give the same tokens."""

import json
from functools import partial
from pathlib import Path
from threading import Thread

import numba
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.config import ServeSettings
from app.engine import autotuning
from app.engine.attention import FUSED, PRODUCTS
from app.engine.autotuning import (
    OFF,
    Autotuner,
    Choice,
    Trial,
    chosen,
    context_of,
    contexts_to,
    key_of,
    processor,
    size_of,
    sizes_to,
)
from app.engine.engine import Engine
from app.engine.running.flat_model import AROUND, COMPILED, FLAT
from app.engine.running.head import COMPILED_HEAD, TORCH
from tests.support.compiled import always, load_compiled
from tests.support.engine_requests import expected, prompt, request, run, variant
from tests.support.kernels import choice_of
from tests.support.quick import slow_but
from tests.support.serving import local_api
from tests.support.tiny import SERVED
from tests.support.waiting import wait_until

SLOW, FAST = "slow", "fast"
KERNELS = (
    (FUSED, FLAT, TORCH),
    (PRODUCTS, COMPILED, AROUND, COMPILED_HEAD),
    (AROUND,),
    (),
)


class Kernels:
    """A product of large matrices and one of small ones, and how often each has run."""

    def __init__(self) -> None:
        self.num_runs = {SLOW: 0, FAST: 0}
        self._matrices = {SLOW: torch.ones(256, 256), FAST: torch.ones(2, 2)}

    def trial(self, *names: str) -> Trial:
        return Trial("a", lambda: {name: partial(self._run, name) for name in names})

    def _run(self, name: str) -> torch.Tensor:
        self.num_runs[name] += 1
        return self._matrices[name] @ self._matrices[name]


def kept(file: Path, *keys: str) -> Autotuner:
    """A tuner that has kept a choice for each key."""
    tuner = Autotuner(file)
    for key in keys:
        tuner.record(key, Choice(FAST, {SLOW: 2.0, FAST: 1.0}))
    tuner.save()
    return tuner


@pytest.mark.parametrize("names", [(SLOW, FAST), (FAST, SLOW)])
def test_the_fastest_is_found(names: tuple[str, str]) -> None:
    kernels = Kernels()
    choice = choice_of(kernels.trial(*names))
    assert choice.kernel == FAST
    assert 0 < choice.seconds[FAST] < choice.seconds[SLOW]
    assert kernels.num_runs[FAST] >= 3


def test_a_hopeless_kernel_is_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotuning, "_HOPELESS", 1.0)
    kernels = Kernels()
    choice_of(kernels.trial(SLOW, FAST))
    assert min(kernels.num_runs.values()) == 2
    assert max(kernels.num_runs.values()) > 2


def test_equal_kernels_do_not_take_turns_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another kernel has to be worth it, or rounding would change from one start to the next."""
    monkeypatch.setattr(autotuning, "_WORTH", 0.0)
    assert choice_of(Kernels().trial(SLOW, FAST)).kernel == SLOW


def test_the_shortest_times_count_and_are_firm_once_they_are_met_again() -> None:
    times = {SLOW: [3.0, 9.0, 9.0], FAST: [2.5, 2.6, 8.0]}
    doubtful = Choice(FAST, {SLOW: 3.0, FAST: 2.5}, is_firm=False)
    assert chosen(times) == doubtful
    assert chosen({SLOW: [3.0, 3.1], FAST: [2.8, 2.8]}) == Choice(SLOW, {SLOW: 3.0, FAST: 2.8})
    again = {SLOW: [4.0, 3.1, 3.2], FAST: [2.4, 2.5]}
    assert chosen(again, doubtful) == Choice(FAST, {SLOW: 3.0, FAST: 2.4})
    busy = {SLOW: [6.0, 6.1], FAST: [7.0, 7.1]}
    assert chosen(busy, doubtful) == doubtful


@given(
    seconds=st.dictionaries(st.sampled_from("abcd"), st.floats(1, 10), min_size=1),
    noise=st.lists(st.lists(st.floats(0, 50), min_size=4, max_size=4), min_size=1, max_size=4),
    clean=st.integers(0, 3),
)
def test_noise_that_leaves_each_kernel_a_clean_run_costs_a_ninth_at_most(
    seconds: dict[str, float], noise: list[list[float]], clean: int
) -> None:
    times = {
        name: [own, *(own + added[at] for added in noise)]
        for at, (name, own) in enumerate(seconds.items())
    }
    rotated = {name: own[clean:] + own[:clean] for name, own in times.items()}
    assert seconds[chosen(rotated).kernel] * 0.9 <= min(seconds.values())


def test_a_step_takes_what_is_known_and_else_the_first_kernel() -> None:
    tuner = Autotuner()
    assert tuner.kernel("a", [SLOW, FAST]) == SLOW
    tuner.record("a", Choice(FAST, {SLOW: 2.0, FAST: 1.0, "third": 3.0}, is_firm=False))
    assert tuner.kernel("a", [SLOW, FAST]) == FAST
    assert tuner.kernel("b", [SLOW, FAST]) == SLOW
    assert tuner.kernel("a", ["third", SLOW]) == SLOW, "the fastest is not there"
    assert tuner.kernel("a", ["fourth"]) == "fourth"
    assert tuner.known("a") is not None
    assert tuner.known("b") is None


def test_without_tuning_the_first_is_taken() -> None:
    assert OFF.kernel("a", [SLOW, FAST]) == SLOW
    assert not OFF.chooses
    assert Autotuner(always=frozenset({FAST})).kernel("a", [SLOW, FAST]) == FAST


def test_choices_are_kept_for_this_processor_and_code_beside_those_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tuning.json"
    kept(file, "a")
    assert Autotuner(file).kernel("a", [SLOW, FAST]) == FAST
    assert Autotuner(file, is_on=False).kernel("a", [SLOW, FAST]) == SLOW
    ours = processor()
    monkeypatch.setattr(autotuning, "versions_digest", lambda: "another version")
    assert Autotuner(file).choices == {}
    kept(file, "b")
    assert json.loads(file.read_text()).keys() == {ours, processor()}
    for number in range(20):
        monkeypatch.setattr(autotuning, "versions_digest", lambda number=number: str(number))
        kept(file, "b")
    assert len(json.loads(file.read_text())) == 16
    assert processor() in json.loads(file.read_text())


def test_any_number_of_processes_may_write(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    names = [f"key {number}" for number in range(16)]
    threads = [Thread(target=kept, args=(file, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Autotuner(file).choices.keys() == set(names)


BROKEN_CHOICES = [
    1,
    {"kernel": "fast"},
    {"kernel": "fast", "seconds": {}, "is_firm": True},
    {"kernel": "fast", "seconds": {"fast": "soon"}, "is_firm": True},
    {"kernel": "fast", "seconds": {"fast": 0}, "is_firm": True},
    {"kernel": "fast", "seconds": {"fast": 1}, "is_firm": 2},
    {"kernel": [], "seconds": {"fast": 1}, "is_firm": True},
]


def check_written_again(file: Path) -> None:
    assert Autotuner(file).choices == {}
    kept(file, "a")
    assert Autotuner(file).choices.keys() == {"a"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "\x00", "[" * 100_000])
def test_a_broken_file_is_written_again(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "tuning.json").write_text(text)
    check_written_again(file)


@pytest.mark.parametrize("choice", BROKEN_CHOICES)
def test_a_broken_choice_is_made_again(tmp_path: Path, choice: object) -> None:
    (file := tmp_path / "tuning.json").write_text(json.dumps({processor(): {"a": choice}}))
    check_written_again(file)


def test_a_file_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tuning.json").mkdir()
    tuner = kept(tmp_path / "tuning.json", "a")
    tuner.save()
    assert tuner.kernel("a", [SLOW, FAST]) == FAST
    messages = [record.message for record in caplog.records]
    assert messages[-1].startswith("kernel choices cannot be saved")


def test_the_device_is_part_of_a_key() -> None:
    keys = {key_of("a", torch.ones(1, device=device), 4, 8) for device in ("cpu", "meta")}
    assert keys == {"a 4x8 float32 cpu", "a 4x8 float32 meta"}


def test_sizes_are_powers_of_two_and_contexts_of_four() -> None:
    assert [size_of(number) for number in (0, 1, 2, 3, 4, 5, 64, 65)] == [1, 1, 2, 4, 4, 8, 64, 128]
    assert sizes_to(5) == [1, 2, 4, 8]
    assert [context_of(number) for number in (1, 64, 65, 4096, 9999)] == [64, 64, 256, 4096, 4096]
    assert contexts_to(600) == [64, 256, 1024]
    assert contexts_to(64) == [64]


@pytest.mark.slow
def test_a_service_keeps_its_choices_by_default_and_makes_none_if_that_is_off(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_compiled()
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")  # the service sets it for the process
    default, kept = ServeSettings.model_fields["tune"].default, settings.data_dir / "tuning.json"
    for tune, is_kept in (("off", False), (default, True)):
        with local_api(settings, redis_url, tune=tune) as client:
            for model in ("tiny", "tiny+int8"):
                body = {"model": model, "prompt": "the dog", "max_new_tokens": 2}
                assert client.post("/generate", json=body).status_code == 200
            if is_kept:
                wait_until(lambda: "int8 product" in choices_in(kept), "kernels are timed")
        assert kept.exists() == is_kept
        assert len([*settings.data_dir.glob("compiled-*")]) == is_kept
    names = {"attention", "int8 product", "blocks", "quantized blocks", "head"}
    assert names <= choices_in(kept)


def choices_in(file: Path) -> set[str]:
    """What the choices in a file are for."""
    sections = json.loads(file.read_text()) if file.exists() else {}
    keys = sections.get(processor(), {})
    return {key.partition(",")[0].partition(" of ")[0] for key in keys}


@pytest.mark.parametrize("kernels", KERNELS, ids=str)
@pytest.mark.parametrize("family", slow_but(SERVED, "gpt2", "gpt_neox", "qwen2_moe"))
def test_whatever_is_chosen_gives_the_tokens_of_generate(
    family: str, kernels: tuple[str, ...]
) -> None:
    tuner = always(*kernels)
    requests = [
        request(prompt(length, length), variant(pruned, family), max_new_tokens=6)
        for length, pruned in ((3, False), (40, False), (9, True))
    ]
    outcome = run(Engine(tuner=tuner), *requests)
    assert [outcome.of(each) for each in requests] == [expected(each) for each in requests]
