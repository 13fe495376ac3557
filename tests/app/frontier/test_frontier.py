"""``sleb frontier`` on a tiny random model: real runs, what it prints and what it keeps."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.bench.bench import stored_subject
from app.bench.plan import AGAIN, DENSE, BenchPlan, Scenario
from app.bench.runs import Sample
from app.cli.main import app as command_line
from app.frontier.loads import plans_of
from app.frontier.speeds import FIRST_PAIRS, MOST_PAIRS, Speeds, measure_speeds
from app.frontier.tasks import TaskPlan, measure_tasks
from app.models.catalog import Catalog
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import Measurand, MeasuredSpeedups
from pruning.config import Settings
from pruning.evaluation.paired_tasks import PairedTask
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore
from pruning.spec import InvalidSpec
from pruning.storage.checkpoints import current_checkpoints
from tests.support.api_fixtures import publish_pruned

INT8, DEPTH = Measurand(0, is_int8=True), Measurand(3)


def test_int8_and_all_depths_are_measured_and_kept(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tiny_models_dir.parent
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("COLUMNS", "120")
    # Of a tiny model on any host
    monkeypatch.setattr("app.frontier.speeds.widened", lambda measured, _control: measured)
    monkeypatch.setattr("app.frontier.speeds.MOST_PAIRS", 3)
    publish_pruned(data_dir)
    publish_pruned(data_dir, 2, "prn-2")
    piqa = PairedTask("piqa", 0.5, 100, both=60, dense_only=10, own_only=0, neither=30)
    weights = fingerprint(data_dir / "models" / "tiny")
    MeasuredQualities(data_dir).record("tiny", weights, tasks={"tiny@prn-2-1": [piqa]})
    out = tmp_path / "frontier.json"
    command = ["frontier", "tiny", "--loads", "stream,prompt", "--max-ratio", "1e6"]
    command += ["--price-per-hour", "1", "--out", str(out)]
    command += ["--tasks", "gen_key,gen_json", "--task-questions", "10"]
    result = CliRunner().invoke(command_line, command)
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    found = json.loads(out.read_text())
    assert " ".join(result.stdout.split()).startswith(found["sentence"])
    points = {point["name"]: point for point in found["points"]}
    assert points["tiny@-1"]["tasks"]["by_task"]["piqa"]["accuracy"] == 0.6
    assert points["tiny"]["tasks"] is None
    for name in ("tiny+int8", "tiny@-1", "tiny@prn-1"):
        answered = points[name]["tasks"]["by_task"]
        assert {answered[task]["num_questions"] for task in ("gen_key", "gen_json")} == {10}
    assert {"tiny", "tiny+int8", "tiny@-1", "tiny@-1+int8", "tiny@prn-1"} <= points.keys()
    assert set(found["taken"]) == {"stream", "prompt"}
    for name, point in points.items():
        assert point["speeds"].keys() == {"stream", "prompt"}, name
        assert point["price_per_million_tokens"] > 0
        is_known = point["worst"]["low"] is not None
        assert point["limit"] == ("kept" if is_known else "undecided")
    assert points["tiny@-1+int8"]["weight_bytes"] < points["tiny+int8"]["weight_bytes"]
    speedups = MeasuredSpeedups(data_dir)
    measured = speedups.of_model("tiny").get(Measurand(1, is_int8=True, load="stream"))
    assert measured is not None
    assert measured.ratio == points["tiny@-1+int8"]["speeds"]["stream"]["value"]
    ratios = MeasuredQualities(data_dir).of("tiny", weights, "tiny+int8")
    worst = max(ratio.value for ratio in ratios.values())
    assert worst == pytest.approx(points["tiny+int8"]["worst"]["value"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tiny+int8"], "name the dense model"),
        (["tiny@-1"], "name the dense model"),
        (["tiny", "--loads", "many"], "'many' is no load"),
        (["tiny", "--loads", "0"], "'0' is no load"),
        (["tiny", "--loads", ","], "loads is empty"),
        (["tiny", "--max-ratio", "0.5"], "1 or more"),
        (["tiny", "--tasks", "gen_key,none"], "unknown tasks: none"),
        (["tiny", "--task-questions", "1"], "10 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], says: str) -> None:
    result = CliRunner().invoke(command_line, ["frontier", *words])
    assert isinstance(result.exception, InvalidSpec)
    assert says in str(result.exception)


def test_loads_fit_the_model() -> None:
    plans = plans_of("stream,8,prompt", 48)
    lengths = [plan.prompt_tokens + plan.new_tokens for plan in plans.values()]
    assert max(lengths[:2]) <= 48
    assert [load.words for load in plans] == [
        "at one stream",
        "at 8 streams",
        "on a prompt of 47 tokens",
    ]


def scripted(order: list[str], clock: list[float]) -> object:
    """Runs that take a second of ``clock`` each, of known times."""

    def measure(side: str, _scenario: Scenario, _plan: BenchPlan) -> Sample:
        order.append(side)
        clock[0] += 1
        noise = 0.2 * (len(order) % 2)
        return Sample({"tpot": {"int8": 0.5}.get(side, 1.0) + noise}, 8, 1.0, None, None)

    return measure


def test_only_what_may_be_taken_gets_more_turns() -> None:
    order, clock = list[str](), [0.0]
    speeds = Speeds(plans_of("stream", 512), {INT8: "int8", DEPTH: "depth"})
    measure = scripted(order, clock)
    measure_speeds(speeds, measure, lambda _known: [INT8], 1e9, lambda *_: None)  # type: ignore[arg-type]  # a callable
    [samples] = speeds.samples.values()
    assert len(samples["depth"]) == FIRST_PAIRS
    assert FIRST_PAIRS < len(samples["int8"]) <= MOST_PAIRS
    assert len(samples[DENSE]) == len(samples[AGAIN]) == len(samples["int8"])


def test_the_time_is_kept_and_what_was_measured_counts() -> None:
    order, clock = list[str](), [0.0]
    speeds = Speeds(plans_of("stream", 512), {INT8: "int8", DEPTH: "depth"})
    measure = scripted(order, clock)
    measure_speeds(speeds, measure, lambda _known: [], 13, lambda *_: None, lambda: clock[0])  # type: ignore[arg-type]  # a callable
    assert speeds.is_cut_short
    assert len(order) == 13
    [load] = speeds.plans
    assert speeds.of(load).keys() == {INT8, DEPTH}


def test_tasks_are_asked_once_and_as_sleb_eval_asks_them(
    tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = tiny_models_dir.parent
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    publish_pruned(data_dir)
    settings, steps = Settings(), list[str]()
    plan = TaskPlan(("gen_key", "gen_json"), 10)

    def measure(until_s: float) -> bool:
        catalog = Catalog(
            ModelStore(settings.models_dir),
            current_checkpoints(settings),
            qualities=MeasuredQualities(data_dir),
        )
        sides = stored_subject("tiny", ["@-2"], "auto", settings).sides()
        entries = [catalog.resolve("tiny@-2")]
        del steps[:]
        return measure_tasks("tiny", plan, entries, sides, catalog, settings, until_s, steps.append)

    assert not measure(until_s=0)
    assert steps == []
    assert measure(math.inf)
    assert steps == [
        f"Asking {name} the questions of {task}"
        for task in plan.names
        for name in ("tiny", "tiny@-2")
    ]
    assert measure(math.inf)
    assert steps == [], "all is known"
    weights = fingerprint(data_dir / "models" / "tiny")
    found = MeasuredQualities(data_dir).tasks("tiny", weights, "tiny@prn-1")
    (data_dir / "qualities.json").unlink()
    command = ["eval", "tiny@-2", "--tasks", "gen_key,gen_json", "--limit", "10"]
    assert CliRunner().invoke(command_line, command).exit_code == 0
    assert MeasuredQualities(data_dir).tasks("tiny", weights, "tiny@prn-1") == found
