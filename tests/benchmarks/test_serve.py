"""The serving benchmark on a tiny model. Only its bookkeeping is tested."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import typer

from app.engine.autotuning import OFF
from app.engine.variant import make_variant
from benchmarks.plan import Part, ServePlan, ServeSubject
from benchmarks.serve import TARGETS, main, run
from pruning.models.store import LoadedModel
from tests.support.processes import environment
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
OFFLINE = (Part.OFFLINE, Part.MIXED, Part.BATCH1)
PLAN = ServePlan(
    parts=OFFLINE,
    concurrency=(1, 3),
    prompt_len=8,
    output_len=5,
    num_requests=5,
    num_mixed=7,
    mixed_prompt_lens=(3, 12),
    mixed_output_lens=(2, 9),
    repeats=2,
)


@pytest.fixture(scope="module")
def subject(tiny_loaded: LoadedModel) -> ServeSubject:
    dense = make_variant("tiny", "tiny", tiny_loaded.model)
    # choices of kernels would be timed within the few steps that are measured here
    return ServeSubject(tiny_loaded.path, dense, tiny_loaded.tokenizer, "float32", 1, tuner=OFF)


@pytest.fixture(scope="module")
def offline(subject: ServeSubject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmark") / "serve.json"
    run(subject, PLAN, out)
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_every_ratio_is_there_and_null_where_it_was_not_run(offline: dict[str, Any]) -> None:
    ratios = offline["ratios"]
    assert ratios.keys() == TARGETS.keys()
    unknown = {name for name, value in ratios.items() if value is None}
    assert unknown == {name for name in TARGETS if not name.startswith(OFFLINE)}
    assert all(value > 0 for value in ratios.values() if value is not None)
    assert offline["machine"]["torch_threads"] > 0
    assert offline["seconds"].keys() == offline["parts"].keys() == set(OFFLINE)


def test_ratios_follow_from_what_they_are_of(offline: dict[str, Any]) -> None:
    seconds = {name: side["seconds"] for name, side in offline["parts"]["offline"].items()}
    turns = zip(*(seconds[name] for name in ("generate", "engine")), strict=True)
    assert offline["ratios"]["offline_vs_generate"] == pytest.approx(
        median(theirs_s / ours_s for theirs_s, ours_s in turns), rel=1e-3
    )  # all for equal numbers of tokens


def test_all_sides_answer_the_same(offline: dict[str, Any]) -> None:
    for side in offline["parts"]["offline"].values():
        assert (side["requests"], side["tokens"]) == (5, 25)
        assert len(side["seconds"]) == 2
    mixed = offline["parts"]["mixed"]
    assert mixed["engine"]["tokens"] == mixed["generate"]["tokens"] > 7 * 2
    assert mixed["engine"]["requests"] == 7
    single = offline["parts"]["batch1"]["engine"]
    assert single["tokens"] == single["requests"] * 5
    for latency in ("ttft_s", "tpot_s", "itl_s"):
        assert list(single[latency]) == ["mean", "p50", "p95", "p99"]


def test_what_cannot_be_measured_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "serve.json", "model": str(tiny_model_dir)}
    with pytest.raises(typer.BadParameter, match="expected some of offline, mixed"):
        main(**options, parts="offline,fast")
    with pytest.raises(typer.BadParameter, match="expected some of generate"):
        main(**options, against="sglang")
    with pytest.raises(typer.BadParameter, match="numbers separated by commas"):
        main(**options, concurrency="1;2")


@pytest.mark.slow
def test_the_serving_benchmark_is_a_command(tiny_model_dir: Path, tmp_path: Path) -> None:
    line = command_line(tiny_model_dir, tmp_path, "--parts", "batch1", "--against", "generate")
    subprocess.run(line, check=True, cwd=ROOT, env=environment(tmp_path))
    report = json.loads((tmp_path / "serve.json").read_text())
    assert list(report["parts"]) == ["batch1"]
    assert report["ratios"]["batch1_vs_generate"] > 0
    assert report["ratios"]["offline_vs_generate"] is None
    assert "benchmarks.serve" in report["command"]


@pytest.mark.slow
def test_no_server_outlives_a_benchmark_that_is_stopped(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    line = command_line(tiny_model_dir, tmp_path, "--parts", "prefix")
    with subprocess.Popen(line, cwd=ROOT, env=environment(tmp_path)) as benchmark:
        process = psutil.Process(benchmark.pid)
        (server,) = wait_until(process.children, "the benchmark has started a server")
        benchmark.terminate()
        assert benchmark.wait(100) != 0
    assert not server.is_running()


@pytest.mark.slow
def test_nor_one_without_a_handle_yet() -> None:
    program = (
        "import signal, subprocess\n"
        "from benchmarks.servers import no_server_left\n"
        "with no_server_left():\n"
        "    print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
    )
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    assert not psutil.pid_exists(int(done.stdout))


def command_line(model: Path, directory: Path, *more: str) -> list[str]:
    line = [sys.executable, "-m", "benchmarks.serve", "--model", str(model)]
    line += ["--dtype", "float32", "--threads", "1", "--concurrency", "1,3", "--repeats", "1"]
    line += ["--prompt-len", "8", "--output-len", "5", "--out", str(directory / "serve.json")]
    return [*line, *more]
