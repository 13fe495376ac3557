"""The steps of the demo, against the API in this process and a tiny model."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import redis
from rich.console import Console

from app.commands.client import ServiceClient, ServiceUnavailable
from app.commands.demo import (
    MAX_NEW_TOKENS,
    REPEATS,
    _compared,
    _evaluate_int8,
    _figures,
    _print_answer,
    _print_next_steps,
    _prune,
    deepest_of,
    keep_measured,
    keep_result,
    own_place,
)
from app.commands.demo_report import ModelFigures, figures_of, print_report
from app.config import ServeSettings
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import COMPARISON, Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.config import child_environment
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.jobs.job import JobStatus
from pruning.jobs.store import JobStore
from pruning.models.demo_model import NAME
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore
from pruning.spec.prune import Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.serving import serving
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

QUIET = Console(quiet=True)
REASON = "kernels were compiled during the comparison"


@pytest.fixture
def service(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> Iterator[ServiceClient]:
    redis_client.ping()
    with serving(settings, redis_url) as (_, url), closing(ServiceClient(url)) as client:
        yield client


def test_all_models_are_measured_by_the_service(
    service: ServiceClient,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("app.commands.demo.MAX_NEW_TOKENS", 6)
    monkeypatch.setattr("app.commands.demo.NAME", "tiny")
    monkeypatch.setattr("app.commands.demo.INT8", "tiny+int8")
    monkeypatch.setenv("COLUMNS", "80")
    manifest = publish_pruned(data_dir, num_remove=3, repair=Repair.AUTO)
    job = {"pruned_model": manifest.name, "removed_blocks": list(manifest.removed_blocks)}
    names = ["tiny", "tiny+int8", deepest_of(job)]
    comparison = _compared(service, names, 0)
    _evaluate_int8(service)
    advice = service.request("GET", "/models/tiny/advice")
    assert {each["name"]: bool(each["ratios"]) for each in advice["depths"]}["tiny+int8"]
    models = _figures(service, comparison)
    assert [side.reason is None for side in models] == [True, False, False]
    assert [side.model["id"] for side in models] == ["tiny", "tiny+int8", "tiny@prn-1-3"]
    for figures in models:
        assert 0 < figures.tpot_s < 60
        assert 0 < figures.ttft_s < 60
        assert figures.tokens_per_s > 0
        assert figures.completion
    print_report(job, advice, models, "a prompt", as_json=False)
    report = capsys.readouterr().out
    table = report.partition("╭")[0]  # below it are outputs of a random model
    assert max(map(len, table.splitlines())) <= 80
    for words in ("int8", "3 removed", "unrepaired", "speed-up, measured", "tiny@prn-1-3"):
        assert words in report
    for domain in models[-1].model["domains"]:
        assert f"{domain['domain']}: {domain['text']}" in " ".join(report.split())
        assert f"{domain['perplexity']:.1f} ({domain['ratio']:.2f}×)" in report


def test_the_table_says_of_speed_what_the_advice_counts_with(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times of one busy comparison are no speed-up, though they look like 3.48 of it."""
    monkeypatch.setenv("COLUMNS", "80")
    found = {"ratio": 1.12, "low": 1.09, "high": 1.15}
    model = {"num_parameters": 1000, "domains": []}
    dense = {**model, "id": NAME, "num_blocks": 30, "measured_speedup": None, "removed_blocks": []}
    busy = {"predicted_speedup": 1.08, "measured_speedup": None, "removed_blocks": [1, 2, 3]}
    quiet = {"predicted_speedup": 1.17, "measured_speedup": found, "removed_blocks": [1, 2, 3, 4]}
    sides = [
        ModelFigures(dense | {"predicted_speedup": None}, 0.02, 0.0348, 100.0, "a"),
        ModelFigures(
            {**model, "id": f"{NAME}@-3", "num_blocks": 27, **busy}, 0.01, 0.01, 9.0, "b", REASON
        ),
        ModelFigures({**model, "id": f"{NAME}@-4", "num_blocks": 26, **quiet}, 0.1, 0.02, 9.0, "c"),
    ]
    print_report({}, {"depths": []}, sides, "a prompt", as_json=False)
    lines = capsys.readouterr().out
    cells = {
        row[1]: row[3:]
        for line in lines.splitlines()
        if len(row := [cell.strip() for cell in line.split("│")]) > 4
    }
    assert cells["speed-up, measured"][:2] == ["not measured", "1.12×"]
    assert cells["95 % interval"][:2] == ["", "1.09 to 1.15"]
    assert cells["speed-up, predicted"][:2] == ["1.08×", "1.17×"]
    assert "3.48" not in lines
    assert f"3 removed: the speed-up is not measured: {REASON}" in " ".join(lines.split())
    print_report({}, {"depths": []}, [sides[0], sides[2]], "a prompt", as_json=False)
    assert REASON not in capsys.readouterr().out


class _Compiling:
    """A service whose kernels are compiled after so many requests."""

    def __init__(self, num_refusals: int) -> None:
        self._left = num_refusals

    def request(self, *_words: str, **_options: object) -> dict[str, Any]:
        self._left -= 1
        if self._left >= 0:
            raise ServiceUnavailable("the kernels are still compiled: retry later")
        return {"prompts": []}


def test_a_comparison_waits_while_a_slow_machine_compiles_kernels() -> None:
    assert _compared(_Compiling(3), [NAME], 0) == {"prompts": []}  # type: ignore[arg-type]  # of one method of a client
    with pytest.raises(ServiceUnavailable, match="still compiled"):
        _compared(_Compiling(4), [NAME], 0)  # type: ignore[arg-type]  # as above


def test_the_answer_is_the_verdict_and_one_next_step() -> None:
    said = StringIO()
    step = {"words": "measure int8 weights", "command": f"sleb frontier {NAME}"}
    _print_answer(Console(file=said, width=40), {"sentence": "Take [it].", "next_step": step})
    assert said.getvalue().splitlines() == [
        "",
        "Take [it].",
        f"Next: measure int8 weights: sleb frontier {NAME}",
    ]
    _print_answer(Console(file=said), {"sentence": "Keep it.", "next_step": None})
    assert said.getvalue().endswith("\nKeep it.\n")


def test_figures_are_medians_over_the_repeats() -> None:
    def output(text: str, factor: float) -> dict[str, object]:
        timings = [
            {"ttft_s": factor * slow, "tpot_s": factor * slow / 10, "e2e_s": factor * slow * 2}
            for slow in (1.0, 2.0, 9.0)
        ]
        return {"text": text, "completion_tokens": MAX_NEW_TOKENS, "timings": timings}

    found = figures_of({"id": "tiny"}, [output("first", 1.0), output("second", 3.0)])
    assert REPEATS % 2 == 1
    assert found.completion == "first"
    assert found.ttft_s == pytest.approx(4.0)  # the mean of 2 and 6 s
    assert found.tpot_s == pytest.approx(0.4)
    assert found.tokens_per_s == pytest.approx(2 * MAX_NEW_TOKENS / 12)  # the slower one ends it


@contextmanager
def ctrl_c_when_submitted(redis_client: redis.Redis) -> Iterator[JobStore]:
    store = JobStore(redis_client)

    def interrupt() -> None:
        wait_until(lambda: store.list(1).jobs, "the demo has submitted its job")
        os.kill(os.getpid(), signal.SIGINT)

    # shells have their background jobs ignore it, and Python leaves that as it is
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield store
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_it_ends_with_the_addresses_and_commands_to_go_on_with() -> None:
    said = StringIO()
    job = {"id": "prn-1", "pruned_model": "m@prn-1", "removed_blocks": [1, 2]}
    _print_next_steps(Console(file=said, width=40), "http://127.0.0.1:8000", job, is_running=True)
    lines = said.getvalue().splitlines()
    for ending in ("page           http://127.0.0.1:8000/ui", f"  sleb advise {NAME}"):
        assert [line for line in lines if line.endswith(ending)], ending


def test_ctrl_c_cancels_the_job(
    data_dir: Path, service: ServiceClient, redis_client: redis.Redis
) -> None:
    write_tiny_model(data_dir / "models" / NAME, num_blocks=4)  # and no worker takes its jobs
    with ctrl_c_when_submitted(redis_client) as store, pytest.raises(KeyboardInterrupt):
        _prune(service, QUIET, 2, evaluate_s=1)
    (job,) = store.list(10).jobs
    assert job.status is JobStatus.CANCELLED


def test_the_service_of_the_demo_has_a_place_of_its_own(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(data_dir / "models" / NAME, num_blocks=4)
    monkeypatch.setenv("SLEB_REDIS_URL", "redis://elsewhere:6379")
    monkeypatch.setenv("SLEB_HOST", "0.0.0.0")  # noqa: S104 - the demo must not take it
    monkeypatch.setenv("SLEB_PRELOAD", '["tiny"]')
    given = ServeSettings(data_dir=data_dir, port=0)
    own_place(given)
    own = own_place(given)  # a second demo finds the place
    variables = child_environment(own)
    assert variables["SLEB_DATA_DIR"] == str(data_dir / "demo")
    assert variables["SLEB_HOST"] == "127.0.0.1"
    assert not {"SLEB_REDIS_URL", "SLEB_PRELOAD"} & set(variables)
    assert ModelStore(own.models_dir).names() == [NAME]


def test_the_checkpoint_of_the_demo_is_served_by_the_ordinary_service_too(tmp_path: Path) -> None:
    source, target = tmp_path / "demo", tmp_path / "checkpoints"
    name = f"{NAME}@prn-1"
    (source / name / "repair").mkdir(parents=True)
    (source / name / "repair" / "depth-1.safetensors").write_text("weights")
    keep_result(name, source, target)
    found = target / name / "repair" / "depth-1.safetensors"
    assert found.samefile(source / name / "repair" / "depth-1.safetensors")
    (source / f"{NAME}@prn-2").mkdir()
    keep_result(f"{NAME}@prn-2", source, target)  # names with @-k keep their meaning
    assert not (target / f"{NAME}@prn-2").exists()


def test_what_the_demo_measured_is_known_to_the_ordinary_service(data_dir: Path) -> None:
    write_tiny_model(data_dir / "models" / NAME, num_blocks=4)
    ordinary = ServeSettings(data_dir=data_dir)
    demo = own_place(ordinary)
    keep_measured(demo, ordinary)
    assert not [*data_dir.glob("*.json")]
    weights = fingerprint(ordinary.models_dir / NAME)
    domain = DomainQuality("prose", "", 24, 64, "d", Measured(3.0, 0.1), (Measured(3.1, 0.01),))
    speedups = {
        Measurand(depth): MeasuredSpeedup(1.1, 1.0, 1.2, COMPARISON, 1.0, 5) for depth in (3, 6)
    }
    qualities = {f"{NAME}+int8": (domain,)}
    MeasuredSpeedups(demo.data_dir).record(NAME, speedups)
    MeasuredQualities(demo.data_dir).record(NAME, weights, qualities)
    keep_measured(demo, ordinary)
    assert MeasuredSpeedups(data_dir).of_model(NAME) == speedups
    assert MeasuredQualities(data_dir).of_model(NAME, weights) == qualities
