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
from benchmarks.search import Dtype
from benchmarks.serve import main, run
from benchmarks.serve_report import TARGETS
from pruning.models.store import LoadedModel
from tests.support.processes import environment
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
OVER_HTTP = (Part.HTTP, Part.PEERS, Part.PREFIX, Part.CHAT, Part.LONG)
OFFLINE = tuple(part for part in Part if part not in OVER_HTTP)
PLAN = ServePlan(
    parts=OFFLINE,
    concurrency=(1, 3),
    prompt_len=8,
    output_len=5,
    num_requests=5,
    num_mixed=7,
    mixed_prompt_lens=(3, 12),
    mixed_output_lens=(2, 9),
    batch_size=3,
    num_steps=4,
    context_lens=(8, 16, 32),
    repeats=2,
)


@pytest.fixture(scope="module")
def subject(tiny_loaded: LoadedModel) -> ServeSubject:
    dense = make_variant("tiny", "tiny", tiny_loaded.model)
    removed = {"@-2": (4, 3), "@-1": (4,)}
    # choices of kernels would be timed within the few steps that are measured here
    return ServeSubject(
        tiny_loaded.path, dense, tiny_loaded.tokenizer, removed, "float32", 1, tuner=OFF
    )


@pytest.fixture(scope="module")
def offline(subject: ServeSubject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmark") / "serve.json"
    run(subject, PLAN, out)
    report: dict[str, Any] = json.loads(out.read_text())
    return {**report, "markdown": out.with_suffix(".md").read_text()}


def test_every_ratio_is_there_and_null_where_it_was_not_run(offline: dict[str, Any]) -> None:
    ratios = offline["ratios"]
    assert ratios.keys() == TARGETS.keys()
    unknown = {name for name, value in ratios.items() if value is None}
    parts = tuple(f"{part}_" for part in OVER_HTTP)
    assert unknown == {name for name in TARGETS if name.startswith(parts)}
    assert all(value > 0 for value in ratios.values() if value is not None)
    assert ratios["weights_with_ten_variants"] == 1
    assert offline["machine"]["torch_threads"] > 0
    assert offline["seconds"].keys() == offline["parts"].keys() == set(OFFLINE)


def test_ratios_follow_from_what_they_are_of(offline: dict[str, Any]) -> None:
    seconds = {name: side["seconds"] for name, side in offline["parts"]["offline"].items()}
    ratios = offline["ratios"]
    for their, name in (("generate", "generate"), ("continuous-batching", "continuous_batching")):
        turns = zip(
            seconds["engine"], seconds[their], strict=True
        )  # all for equal numbers of tokens
        assert ratios[f"offline_vs_{name}"] == pytest.approx(
            median(their_s / our_s for our_s, their_s in turns), rel=1e-3
        )
    pruned = offline["parts"]["pruned"]
    assert list(pruned) == ["@-2", "@-1"]
    assert ratios["pruned_speedup"] == pytest.approx(
        pruned["@-2"]["dense_s"] / pruned["@-2"]["pruned_s"], abs=1e-4
    )
    assert pruned["@-2"]["bound"] < pruned["@-2"]["bound_by_blocks_alone"] == 1.5


def test_all_sides_answer_the_same(offline: dict[str, Any]) -> None:
    for side in offline["parts"]["offline"].values():
        assert (side["requests"], side["tokens"]) == (5, 25)
        assert len(side["seconds"]) == 2
    mixed = offline["parts"]["mixed"]
    assert mixed["engine"]["tokens"] == mixed["static"]["tokens"] > 7 * 2
    assert mixed["engine"]["requests"] == 7
    single = offline["parts"]["batch1"]["engine"]
    assert single["tokens"] == single["requests"] * 5
    for latency in ("ttft_s", "tpot_s", "itl_s"):
        assert list(single[latency]) == ["mean", "p50", "p95", "p99"]


def test_contexts_make_a_table(offline: dict[str, Any]) -> None:
    context = offline["parts"]["context"]
    assert list(context) == ["batch 1", "batch 8"]
    lengths = [[point["context_len"] for point in one["points"]] for one in context.values()]
    assert lengths == [[8, 16, 32]] * 2
    assert offline["markdown"].count("\n| 8 | ") == 3


def test_what_cannot_be_measured_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "serve.json", "model": str(tiny_model_dir)}
    with pytest.raises(typer.BadParameter, match="expected some of offline, mixed"):
        main(**options, parts="offline,fast")
    with pytest.raises(typer.BadParameter, match="expected some of generate"):
        main(**options, against="sglang")
    with pytest.raises(typer.BadParameter, match="numbers separated by commas"):
        main(**options, concurrency="1;2")
    with pytest.raises(typer.BadParameter, match="from-to"):
        main(**options, mixed_output_lens="8")
    with pytest.raises(typer.BadParameter, match="@-1 to @-5"):
        main(**options, variants="@-6", dtype=Dtype.FLOAT32)


@pytest.mark.slow
def test_the_serving_benchmark_is_a_command(tiny_model_dir: Path, tmp_path: Path) -> None:
    report = command(tiny_model_dir, tmp_path, "--parts", "weights,http", "--against", "generate")
    closed = report["parts"]["http"]["closed_loop"]
    assert list(closed) == ["1", "3"]
    for num_requests, sides in zip((2, 3), closed.values(), strict=True):
        assert list(sides) == ["offline", "sleb serve"]
        assert {side["tokens"] for side in sides.values()} == {num_requests * 5}
    opened = report["parts"]["http"]["open_loop"]
    assert opened["sleb serve"]["tokens"] == 3 * 5
    assert opened["requests_per_s"] > 0
    rates = {name: side["tokens_per_s"] for name, side in closed["3"].items()}
    assert report["ratios"]["http_vs_offline"] == pytest.approx(
        rates["sleb serve"] / rates["offline"], rel=1e-3
    )
    assert report["ratios"]["http_vs_transformers_serve"] is None
    assert "benchmarks.serve" in report["command"]


@pytest.mark.slow
def test_transformers_serve_gets_the_same_requests(tiny_model_dir: Path, tmp_path: Path) -> None:
    report = command(tiny_model_dir, tmp_path, "--parts", "http", "--against", "transformers-serve")
    sides = report["parts"]["http"]["closed_loop"]["3"]
    assert len(sides) == 4
    assert {side["tokens"] for side in sides.values()} <= {2 * 5, 3 * 5}  # one of them gets fewer
    theirs = [side["tokens_per_s"] for name, side in sides.items() if name.startswith("transf")]
    assert report["ratios"]["http_vs_transformers_serve"] == pytest.approx(
        sides["sleb serve"]["tokens_per_s"] / max(theirs), rel=1e-3
    )


@pytest.mark.slow
def test_no_server_outlives_a_benchmark_that_is_stopped(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    line = command_line(tiny_model_dir, tmp_path, "--parts", "http")
    with subprocess.Popen(line, cwd=ROOT, env=environment(tmp_path)) as benchmark:
        process = psutil.Process(benchmark.pid)
        (server,) = wait_until(process.children, "the benchmark has started a server")
        benchmark.terminate()
        assert benchmark.wait(100) != 0
    assert not server.is_running()


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


def command(model: Path, directory: Path, *more: str) -> dict[str, Any]:
    """The report of the benchmark command."""
    line = command_line(model, directory, *more)
    subprocess.run(line, check=True, cwd=ROOT, env=environment(directory))
    report: dict[str, Any] = json.loads((directory / "serve.json").read_text())
    return report


def command_line(model: Path, directory: Path, *more: str) -> list[str]:
    line = [sys.executable, "-m", "benchmarks.serve", "--model", str(model), "--variants", "@-2"]
    line += ["--dtype", "float32", "--threads", "1", "--concurrency", "1,3", "--repeats", "1"]
    line += ["--prompt-len", "8", "--output-len", "5", "--out", str(directory / "serve.json")]
    return [*line, *more]
