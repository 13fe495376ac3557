"""``sleb bench``: real runs of tiny models, and reports of invented times."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from typer.testing import CliRunner

from app.bench import bench
from app.bench import runs as bench_runs
from app.bench.plan import DENSE, HALF, BenchPlan, BenchSubject, Scenario
from app.bench.result import Bench, markdown, to_wire
from app.bench.runs import OwnRuns, Sample, WrongLength
from app.cli.main import app as command_line
from app.compare.speedup import Verdict
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.engine import PromptTooLong
from app.engine.running.flat_model import FLAT
from app.engine.running.head import TORCH
from app.engine.scheduling.sequence import Request
from app.models.measured_speedups import MeasuredSpeedups
from app.results.store import ResultStore
from pruning.checkpoints.store import MANIFEST
from pruning.config import Settings
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import view
from pruning.models.store import LoadedModel
from pruning.repair.record import Method
from pruning.worker.gpu import energy_j
from tests.support.api_fixtures import publish_pruned
from tests.support.bench_options import SMALL
from tests.support.engine_requests import variant
from tests.support.logits import logits_of, token_ids
from tests.support.repairs import repair_checkpoint
from tests.support.tiny import NUM_BLOCKS

PLAN = BenchPlan(
    batch_size=3,
    prompt_tokens=4,
    new_tokens=5,
    long_prompt=9,
    concurrency=2,
    requests=5,
    served_tokens=3,
    repeats=2,
)


@pytest.fixture(autouse=True)
def _own_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path / "data"))


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(command_line, ["bench", *arguments, *SMALL, "--json"])
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    assert "\nMeasuring " in result.stderr, "it says what it does without a terminal too"
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_model_with_random_weights(tiny_shape: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run("--random-weights", tiny_shape, "--variants", "dense,@-2", "--out", str(out))
    assert found["variants"] == {"tiny@-2": [4, 5]}
    assert found["weight_bytes"]["tiny@-2"] < found["weight_bytes"]["dense"]
    assert found["weight_bytes"]["dense again"] == found["weight_bytes"]["dense"]
    tokens = {"generation": 3 * 5, "prompt": 9, "served": 5 * 3}
    for scenario, samples in found["samples"].items():
        assert list(samples) == [DENSE, "dense again", "tiny@-2", HALF]
        for runs in samples.values():
            assert [each["num_tokens"] for each in runs] == [tokens[scenario]] * 2
            assert all(each["peak_memory_bytes"] is None for each in runs)  # no GPU here
    assert list(found["samples"]) == list(tokens)
    assert found["prompt_reading"] == "in full"
    written = json.loads((out / "bench.json").read_text())
    assert written == {each: value for each, value in found.items() if each != "path"}
    assert "## Served: 2 clients, 5 requests of 4 + 3 tokens" in (out / "bench.md").read_text()
    [kept] = ResultStore(tmp_path / "data").page(9).results
    assert (kept.kind, kept.model, kept.report) == ("bench", "tiny", written)
    assert [part.partition(":")[0] for part in kept.headline.split("; ")] == [
        f"{scenario}, {variant}, per token"
        for scenario in ("generation", "served")
        for variant in ("dense again", "tiny@-2")
    ]


def test_int8_forms_are_sides_like_any_other(tiny_shape: str, tmp_path: Path) -> None:
    words = ["--scenarios", "generation", "--variants", "+int8,@-2+int8", "--out", str(tmp_path)]
    found = run("--random-weights", tiny_shape, *words)
    assert found["variants"] == {"tiny+int8": [], "tiny@-2+int8": [4, 5]}
    sizes = found["weight_bytes"]
    assert sizes["tiny@-2+int8"] < sizes["tiny+int8"] < sizes["dense"]
    ideals = {row["ideal"] for row in found["results"] if row["variant"] != "dense again"}
    assert ideals == {None}  # of plain weights only
    report = (tmp_path / "bench.md").read_text()
    assert "`tiny+int8`: the dense model with int8 weights" in report
    assert "without blocks 4, 5, not repaired, with int8 weights" in report


def test_variants_are_those_of_the_published_order(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    # Of a tiny model on any host
    monkeypatch.setattr("app.bench.bench.widened", lambda measured, _control: measured)
    removed = list(publish_pruned(tiny_models_dir.parent).removed_blocks)
    names = "@-1,@prn-1,tiny@-2,+int8,@-2+int8"
    found = run(
        "tiny", "--variants", names, "--out", str(tmp_path / "out"), "--scenarios", "generation"
    )
    assert found["variants"] == {
        "tiny@-1": removed[:1],
        "tiny@prn-1": removed,
        "tiny@-2": removed[:2],
        "tiny+int8": [],
        "tiny@-2+int8": removed[:2],
    }
    per_token = {
        row["variant"]: row["speedup"]["ratio"] for row in found["results"] if row["time"] == "tpot"
    }
    assert list(per_token) == ["dense again", *found["variants"]]
    speedups = MeasuredSpeedups(tiny_models_dir.parent)
    measured = speedups.of("tiny", 1)
    assert measured is not None
    assert (measured.ratio, measured.scenario) == (per_token["tiny@-1"], "generation")
    assert speedups.of("tiny", len(removed)) is not None
    assert speedups.of("tiny", len(removed) + 1) is None
    for name, depth in {"tiny+int8": 0, "tiny@-2+int8": 2}.items():
        int8 = speedups.of("tiny", depth, is_int8=True)
        assert int8 is not None
        assert int8.ratio == per_token[name]
    [kept] = ResultStore(tiny_models_dir.parent).page(9).results
    assert kept.report["variants"] == found["variants"]


def test_the_deepest_published_variant_is_measured_by_default(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    command = ["bench", "tiny", "--out", str(tmp_path / "out"), "--scenarios", "prompt"]
    result = CliRunner().invoke(command_line, [*command, *SMALL])
    assert isinstance(result.exception, bench.NothingPublished)
    assert "`sleb jobs submit tiny --num-remove 1`" in str(result.exception)
    removed = list(publish_pruned(tiny_models_dir.parent, 2).removed_blocks)
    assert run(*command[1:])["variants"] == {"tiny@-2": removed}
    publish_pruned(tiny_models_dir.parent, 1, "prn-2")
    assert run(*command[1:])["variants"] == {"tiny@-1": removed[:1]}


def test_raw_and_repaired_are_measured_side_by_side(
    tiny_models_dir: Path,
    tiny_loaded: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    checkpoint = (
        tiny_models_dir.parent / "checkpoints" / publish_pruned(tiny_models_dir.parent).name
    )
    methods = [Method.SCALE, Method.NONE, Method.RIDGE]
    manifest = repair_checkpoint(checkpoint, tiny_loaded.model, methods)
    (checkpoint / MANIFEST).write_text(replace(manifest, tenant="team").to_json())
    names = ["@-1", "@-2", "@-3", "@-3+raw"]
    out = tmp_path / "out"
    found = run("tiny", "--variants", ",".join(names), "--out", str(out), "--scenarios", "prompt")
    assert found["repairs"] == {"tiny@-1": "scale", "tiny@-3": "ridge"}
    variants = ["dense again", *(f"tiny{name}" for name in names)]
    assert [row["variant"] for row in found["results"]] == variants
    report = (out / "bench.md").read_text()
    assert [each.tenants for each in ResultStore(tmp_path).page(9).results] == [{"team"}]
    removed = ", ".join(map(str, manifest.removed_blocks))
    assert f"- `tiny@-3`: without blocks {removed}, repaired by ridge\n" in report
    assert f"- `tiny@-3+raw`: without blocks {removed}, not repaired\n" in report
    sides = bench.stored_subject("tiny", names, "float32", Settings()).sides()
    for name, side in sides.items():
        if name.startswith("tiny"):
            raw = view(sides[DENSE].model, side.keep)
            is_equal = torch.equal(logits_of(side.model, token_ids()), logits_of(raw, token_ids()))
            assert is_equal == (name not in found["repairs"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["tiny", "--random-weights", "tiny"], 2, "either MODEL or"),
        ([], 2, "expected either MODEL"),
        (["tiny", "--scenarios", "x"], 2, "generation, prompt, served"),
        (["tiny", "--dtype", "int8"], 2, "bfloat16"),
    ],
)
def test_wrong_use_says_what_is_expected(arguments: list[str], code: int, says: str) -> None:
    result = CliRunner().invoke(command_line, ["bench", *arguments], env={"COLUMNS": "200"})
    assert (result.exit_code, says in result.output) == (code, True), result.output


@pytest.mark.parametrize("names", ["@-6", "@-0", "x", "@-3+raw"])
def test_a_variant_that_there_is_not_is_refused(
    names: str, tiny_shape: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(
        command_line,
        ["bench", "--random-weights", tiny_shape, "--variants", names, "--out", str(tmp_path)],
    )
    assert result.exit_code == 1
    assert "expected dense, @-1 to @-5" in str(result.exception)


def test_sides_take_turns() -> None:
    order: list[str] = []

    class Noted(OwnRuns):
        def measure(self, name: str, scenario: Scenario, plan: BenchPlan) -> Sample:
            order.append(name)
            return super().measure(name, scenario, plan)

    plan = replace(PLAN, repeats=4)
    runs = Noted({"a": variant(), "b": variant()})
    samples = bench._in_turns(["a", "b"], runs.measure, Scenario.PROMPT, plan, lambda: None)
    assert order == ["a", "b", *["a", "b", "b", "a"] * 2]  # first a warm-up of each
    assert {name: len(runs) for name, runs in samples.items()} == {"a": 4, "b": 4}


def measured(scenario: Scenario, plan: BenchPlan) -> Sample:
    return OwnRuns({"one": variant()}).measure("one", scenario, plan)


def test_what_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(PromptTooLong):
        measured(Scenario.PROMPT, replace(PLAN, long_prompt=1000))


def test_an_answer_of_another_length_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "app.engine.engine.landed",
        lambda launched, _is_open: [(seq, None) for seq in launched.seqs],
    )
    with pytest.raises(WrongLength, match="0 of 5 tokens"):
        measured(Scenario.GENERATION, PLAN)


def sample(tpot_s: float, energy: float | None = None) -> Sample:
    times_s = {"tpot": tpot_s, "e2e": 10 * tpot_s, "ttft": tpot_s}
    return Sample(times_s, 100, 100 * tpot_s, 2**30 if energy else None, energy)


def made_up(
    pruned_s: list[float],
    *,
    dense_s: float = 0.1,
    half_s: float = 0.055,
    again: tuple[float, ...] = (1.002, 0.999, 1.0),
) -> Bench:
    """A model of six blocks that take 15 ms each, with 5 ms of embeddings and 5 ms of head."""
    subject = BenchSubject("m" * 60, variant(), {"pruned": (1, 4)})
    runs = {
        DENSE: [sample(dense_s, energy=50.0) for _ in pruned_s],
        "dense again": [sample(dense_s * factor) for factor in again],
        "pruned": [sample(each) for each in pruned_s],
        HALF: [sample(half_s) for _ in pruned_s],
    }
    parts = {Scenario.GENERATION: BlockTimes(0.005, 0.0, 0.005)}
    weights = dict.fromkeys(runs, 100)
    plan = replace(PLAN, scenarios=(Scenario.GENERATION,), repeats=len(pruned_s))
    facts = {"machine": {"cpu": "some"}, "command": "sleb bench"}
    return Bench(subject, plan, {Scenario.GENERATION: runs}, parts, weights, facts)


def test_a_clear_effect_has_a_verdict_beside_the_ideal() -> None:
    found = {(row.variant, row.time): row for row in made_up([0.0720, 0.0721, 0.0719]).rows()}
    pruned = found["pruned", "tpot"]
    assert pruned.speedup.verdict is Verdict.FASTER
    assert pruned.speedup.ratio == pytest.approx(0.1 / 0.072)
    assert pruned.ideal == pytest.approx(0.100 / 0.070)
    assert pruned.ideal_by_blocks == NUM_BLOCKS / (NUM_BLOCKS - 2)
    assert found["pruned", "e2e"].ideal is None
    again = found["dense again", "tpot"]
    assert (again.speedup.verdict, again.ideal) == (Verdict.NO_DIFFERENCE, 1.0)


def test_a_noisy_one_has_none_and_says_why() -> None:
    noisy = made_up([0.06, 0.12, 0.07])
    row = next(row for row in noisy.rows() if row.variant == "pruned")
    assert row.speedup.verdict is Verdict.UNDECIDED
    report = markdown(noisy)
    assert "pruned, per token: undecided: the 95 % interval" in report
    assert "contains 1: use more repeats" in report
    assert "dense again, per token: no difference" in report


def test_a_speed_up_within_the_noise_of_the_control_has_no_verdict() -> None:
    slow = made_up([0.0980, 0.0981, 0.0979], again=(1.0, 0.92, 1.08))
    row = next(row for row in slow.rows() if row.variant == "pruned")
    assert row.speedup.verdict is Verdict.UNDECIDED
    assert "overlaps the noise floor" in row.speedup.reason
    assert "`dense again` is the control" in markdown(slow)


def test_different_kernels_have_no_verdict_and_are_said() -> None:
    found = made_up([0.0720, 0.0721, 0.0719])
    noted = dict(found.samples[Scenario.GENERATION])
    for name, kernel in (("pruned", "torch"), (DENSE, "compiled"), ("dense again", "compiled")):
        kernels = (kernels_of(kernel),)
        noted[name] = [replace(run, kernels=kernels) for run in noted[name]]
    found = replace(found, samples={Scenario.GENERATION: noted})
    rows = {row.variant: row for row in found.rows() if row.time == "tpot"}
    assert rows["dense again"].speedup.verdict is Verdict.NO_DIFFERENCE
    assert rows["pruned"].speedup.verdict is Verdict.UNDECIDED
    says = "different kernels: blocks, decode of 3 (compiled against torch)"
    assert says in markdown(found)
    assert to_wire(found)["kernels"]["generation"]["pruned"] == kernels_of("torch")


def test_it_says_how_prompts_were_read() -> None:
    found = made_up([0.0720, 0.0721, 0.0719])
    assert to_wire(found)["prompt_reading"] == "in full"
    assert "Prompts were read in full." in markdown(found)
    noted = dict(found.samples[Scenario.GENERATION])
    noted["pruned"] = [replace(run, num_cached_tokens=32) for run in noted["pruned"]]
    found = replace(found, samples={Scenario.GENERATION: noted})
    assert to_wire(found)["prompt_reading"] == "from cached prefixes"
    assert "Prompts were read from cached prefixes." in markdown(found)


def test_a_run_counts_what_it_did_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, batch_size=2, prompt_tokens=5 * PAGE_TOKENS)
    assert measured(Scenario.GENERATION, plan).num_cached_tokens == 0
    made = bench_runs.random_requests

    def sharing(*given: Any) -> list[Request]:
        first, *rest = (replace(each, cache_scope="") for each in made(*given))
        return [first, *(replace(each, prompt_ids=first.prompt_ids) for each in rest)]

    monkeypatch.setattr(bench_runs, "random_requests", sharing)
    assert measured(Scenario.GENERATION, plan).num_cached_tokens == 4 * PAGE_TOKENS


def kernels_of(kernel: str) -> dict[str, str]:
    return {"blocks, decode of 3": kernel}


def test_a_run_has_the_kernels_of_its_requests() -> None:
    (kernels,) = measured(Scenario.GENERATION, PLAN).kernels
    assert kernels["blocks, decode of 4 within 64"] == FLAT
    assert kernels["head of 4"] == TORCH


def test_without_a_block_s_time_there_is_no_ideal() -> None:
    rows = made_up([0.07, 0.07, 0.07], half_s=0.2).rows()
    assert [row.ideal for row in rows if row.time == "tpot"] == [None, None]


def test_the_report_has_memory_and_energy_where_they_are_known() -> None:
    report = markdown(made_up([0.07, 0.07, 0.07]))
    assert "| dense | 10.0 | 1.00 GiB | 0.500 J |" in report
    assert "| pruned | 14.3 | not a GPU | unknown |" in report
    assert "half" not in report


def test_energy_is_asked_of_the_right_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the driver is a fake."""
    assert energy_j(torch.device("cpu")) is None
    asked: list[str] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"u{device.index}")
    )
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: asked.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: asked.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", asked.append)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _handle: 2500)
    assert energy_j(torch.device("cuda:1")) == 2.5
    assert asked == ["init", "GPU-u1", "shutdown"]

    def fail(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", fail)
    assert energy_j(torch.device("cuda:1")) is None
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert energy_j(torch.device("cuda:1")) is None
