"""The gate in front of publishing: what passes, what is warned of, and what is refused."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.checkpoints.store import CheckpointStore, Manifest, verify
from pruning.checkpoints.trajectory import legend
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.probe import Item, digest
from pruning.evaluation.probe_run import answer
from pruning.evaluation.quality import DomainQuality, Measured, Quality
from pruning.evaluation.quality_gate import Judged, QualityGateFailed, gated, undecided
from pruning.evaluation.results import ItemResult, Kind, ProbeComparison, compare, summary
from pruning.evaluation.task_comparison import AskTasks, IsEnough
from pruning.jobs.job import JobStatus
from pruning.jobs.store import JobStore
from pruning.models.forward import InMemoryForward
from pruning.models.store import ModelStore, load
from pruning.pipeline import prune
from pruning.repair.record import repair_file
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Evaluation, Gate, GateAction, gate_of
from pruning.spec.prune import PruneSpec, Repair, Resident
from pruning.worker import task
from tests.support.pruning_runs import RUN
from tests.support.recorder import Recorder

WARN, REFUSE, DEEPEST = GateAction
SPEC = PruneSpec(
    "tiny",
    num_remove=2,
    calibration=CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12),
    evaluation=Evaluation(num_samples=200),
)
QUALITY = Quality((1.0, 2.0, 3.0), (10.0, 12.0, 15.0), "some text")


def lost_half(_num_removed: int) -> ProbeComparison:
    """Both answers of each of four are right, then one of both: a drop of 0.5 ± 0."""
    right = [ItemResult(Kind.JSON, is_chosen=True, is_written=True)] * 4
    half = [ItemResult(Kind.JSON, is_chosen=True, is_written=False)] * 4
    return compare(right, half, "d")


def never(_num_removed: int) -> ProbeComparison:
    raise AssertionError("asked, though no limit needs it")


def judge(
    gate: Gate,
    quality: Quality,
    ask: Callable[[int], ProbeComparison],
    control: float | None = None,
) -> Quality:
    judged = Judged(quality, ask, control=control)
    return gated(gate, judged, range(1, quality.num_removed + 1))


@pytest.mark.parametrize("action", GateAction)
@pytest.mark.parametrize("gate", [Gate(max_perplexity_ratio=1.5), Gate(max_perplexity_ratio=1e9)])
def test_what_is_at_a_limit_or_below_passes(gate: Gate, action: GateAction) -> None:
    assert judge(replace(gate, action=action), QUALITY, never) == QUALITY
    with_probe = judge(Gate(0.5, 1.5, action), QUALITY, lost_half)
    assert with_probe == replace(QUALITY, probe=lost_half(2))


def test_what_is_beyond_a_limit_is_said_with_its_numbers() -> None:
    found = judge(Gate(0.4, 1.4), QUALITY, lost_half).warnings
    assert found == (
        "the probe score went from 1.000 to 0.500, a drop of 0.500 ± 0.000 (limit 0.4)",
        "perplexity went from 10 to 15 on some text, a ratio of 1.5, limit 1.4",
    )
    with pytest.raises(QualityGateFailed, match=r"a drop of 0\.500.*; perplexity went") as caught:
        judge(Gate(0.4, 1.4, REFUSE), QUALITY, lost_half)
    assert caught.value.param == "gate.max_probe_drop"
    with pytest.raises(QualityGateFailed) as caught:
        judge(Gate(0.5, 1.4, REFUSE), QUALITY, lost_half)
    assert caught.value.param == "gate.max_perplexity_ratio"


def asked(*tasks: PairedTask) -> AskTasks:
    """Ten times the questions if these are not enough."""

    def ask(_num_removed: int, is_enough: IsEnough) -> tuple[PairedTask, ...]:
        return tasks if is_enough(tasks) else tuple(map(of_ten_times, tasks))

    return ask


def of_ten_times(task: PairedTask) -> PairedTask:
    counts = {name: 10 * getattr(task, name) for name in ("both", "dense_only", "own_only")}
    return replace(task, **counts, neither=10 * task.neither)


KEPT = PairedTask("kept", 0.5, 9000, both=900, dense_only=5, own_only=5, neither=90)
LOST = PairedTask("lost", 0.0, 9000, both=350, dense_only=350, own_only=0, neither=300)
GUESSED = PairedTask("guessed", 0.25, 9000, both=60, dense_only=40, own_only=40, neither=260)


def judge_tasks(gate: Gate, *tasks: PairedTask) -> Quality:
    return gated(gate, Judged(QUALITY, never, ask_tasks=asked(*tasks)), [1, 2])


def test_the_worst_task_decides_and_is_named_with_its_distance() -> None:
    gate = Gate(min_task_share=0.8, action=REFUSE)
    assert judge_tasks(gate, KEPT, GUESSED) == replace(QUALITY, tasks=(KEPT, GUESSED))
    with pytest.raises(QualityGateFailed) as caught:
        judge_tasks(gate, KEPT, LOST)
    assert caught.value.param == "gate.min_task_share"
    begin = "not published: the worst task, lost, keeps 0.5 (0.4317 to 0.5683) of the dense"
    assert str(caught.value).startswith(begin)
    assert "0.3 below the limit 0.8 (accuracy went from 0.700 to 0.350" in str(caught.value)
    with pytest.raises(QualityGateFailed, match="no depth is shown"):
        judge_tasks(replace(gate, action=DEEPEST), LOST)


def test_an_undecided_task_is_asked_more_and_only_then_a_warning() -> None:
    few = PairedTask("kept", 0.5, 9000, both=70, dense_only=3, own_only=1, neither=26)
    found = judge_tasks(Gate(min_task_share=0.8, action=REFUSE), few)
    assert found == replace(QUALITY, tasks=(of_ten_times(few),))
    [warning] = judge_tasks(Gate(min_task_share=0.91, action=REFUSE), few).warnings
    assert "undecided, because the interval contains it" in warning
    [warning] = judge_tasks(Gate(min_task_share=0.1), GUESSED).warnings
    assert warning.startswith("on no task the dense model is surely better than guesses")


def test_each_domain_has_its_own_limit() -> None:
    dense = (1.0, 2.0, 3.0, 2.0, 2.0)
    raw = (1.5, 2.5, 3.8, 2.5, 2.7)
    prose, code = (
        DomainQuality(
            domain, f"packaged {domain}", 5, 8, "d", Measured.of_dense(dense), measured, repaired
        )
        for domain, measured, repaired in (
            ("prose", (Measured.against(dense, raw),), ()),
            (
                "code",
                (Measured.against(dense, raw),),
                (Measured.against(dense, (1.2, 2.2, 3.21, 2.2, 2.2)),),
            ),
        )
    )
    quality = replace(QUALITY, domains=(prose, code))
    found = judge(Gate(max_perplexity_ratio_of={"prose": 1.8, "code": 3.0}), quality, never)
    [warning] = found.warnings
    assert warning == (
        "perplexity on prose went from 7.389 to 13.46 (packaged prose, 5 windows of 8 tokens), "
        "a ratio of 1.822 (1.068 to 3.11), limit 1.8; undecided, because the interval contains "
        "the limit"
    )
    undecided = Gate(max_perplexity_ratio_of={"prose": 1.8}, action=REFUSE)
    assert judge(undecided, quality, never).warnings == (warning,)
    beyond = Gate(max_perplexity_ratio_of={"prose": 1.01}, action=REFUSE)
    with pytest.raises(QualityGateFailed, match=r", limit 1\.01\. Remove"):
        judge(beyond, quality, never)
    kept = Gate(max_perplexity_ratio_of={"prose": 3.5}, action=REFUSE)
    assert judge(kept, quality, never).warnings == ()
    strict = Gate(max_perplexity_ratio_of={"prose": 2, "code": 1.05}, action=REFUSE)
    with pytest.raises(QualityGateFailed, match=r"on code went from 7\.389 to 9\.0") as caught:
        judge(strict, quality, never)
    assert caught.value.param == "gate.max_perplexity_ratio_of.code"


def test_a_control_that_is_better_than_the_dense_model_takes_its_place() -> None:
    dense, healed, control = (1.0, 2.0, 3.0), (1.2, 2.2, 3.2), (0.5, 1.5, 2.5)
    of_domain = DomainQuality(
        "prose",
        "packaged prose",
        3,
        8,
        "d",
        Measured.of_dense(dense),
        (Measured.against(dense, healed),),
        healed=(Measured.against(dense, healed),),
        control=Measured.against(dense, control),
    )
    quality = replace(QUALITY, perplexities=(10.0, 12.0), domains=(of_domain,))
    gate = Gate(max_perplexity_ratio=1.3, max_perplexity_ratio_of={"prose": 1.3})
    on_all, on_prose = judge(gate, quality, never, control=8.0).warnings
    assert on_all.startswith("perplexity went from 8 (control) to 12 on")
    assert "a ratio of 1.5" in on_all
    assert "perplexity on prose went from 4.482 (control) to 9.025" in on_prose
    assert "a ratio of 2.014" in on_prose
    worse = replace(of_domain, control=Measured.against(dense, healed))
    assert not judge(gate, replace(quality, domains=(worse,)), never, control=11.0).warnings


def of_text(*served: Measured) -> Quality:
    """As many removals as there are models, on one domain of 24 windows."""
    dense = Measured(2.0, 0.1)
    domain = DomainQuality("prose", "packaged prose", 24, 8, "d", dense, served)
    losses = tuple(1.0 + number for number in range(len(served) + 1))
    curve = (10.0, *(10 * math.exp(each.loss - 2.0) for each in served))
    return Quality(losses, curve, "some text", domains=(domain,), raw_perplexities=curve)


CURVE = of_text(Measured(2.1, 0.01), Measured(2.2, 0.01), Measured(2.6, 0.01))


def test_the_most_removals_that_keep_the_limits_are_taken() -> None:
    kept = judge(Gate(max_perplexity_ratio=1.3, action=DEEPEST), CURVE, never)
    assert kept == replace(CURVE.up_to(2), warnings=kept.warnings)
    assert (kept.num_removed, len(kept.domains[0].raw)) == (2, 2)
    assert kept.has_depths(2)
    [warning] = kept.warnings
    assert warning == (
        "not deeper: without 3 blocks, perplexity went from 10 to 18.22 on some text, "
        "a ratio of 1.822, limit 1.3"
    )
    of_domain = Gate(max_perplexity_ratio_of={"prose": 1.2}, action=DEEPEST)
    taken = judge(of_domain, CURVE, never)
    assert taken.num_removed == 1
    assert "not deeper: without 2 blocks, perplexity on prose went from" in taken.warnings[0]
    assert judge(replace(of_domain, max_perplexity_ratio_of={"prose": 2}), CURVE, never) == CURVE


def test_what_is_not_shown_to_keep_a_limit_is_not_taken() -> None:
    wide = of_text(Measured(2.1, 0.001), Measured(2.2, 0.05))
    gate = Gate(max_perplexity_ratio_of={"prose": 1.25}, action=DEEPEST)
    taken = judge(gate, wide, never)
    assert taken.num_removed == 1
    assert "undecided" in taken.warnings[0]


def test_no_depth_that_keeps_the_limits_is_an_error() -> None:
    gate = Gate(max_perplexity_ratio=1.05, action=DEEPEST)
    with pytest.raises(QualityGateFailed, match=r"no depth is shown.*without 1 block, perplexity"):
        judge(gate, CURVE, never)
    with pytest.raises(QualityGateFailed, match="without 3 blocks"):  # the only one that is trained
        gated(Gate(max_perplexity_ratio=1.3, action=DEEPEST), Judged(CURVE, never), [3])


def test_the_probe_is_asked_from_the_deepest_where_the_text_allows_it() -> None:
    asked = []

    def ask(num_removed: int) -> ProbeComparison:
        asked.append(num_removed)
        right = [ItemResult(Kind.JSON, is_chosen=True, is_written=True)] * 4
        return lost_half(0) if num_removed > 1 else compare(right, right, "d")

    taken = judge(Gate(0.1, 1.3, DEEPEST), CURVE, ask)
    assert asked == [2, 1]
    assert taken.num_removed == 1
    assert taken.probe == ask(1)
    assert "not deeper: without 2 blocks, the probe score went" in taken.warnings[0]


def test_windows_are_asked_for_where_they_decide_the_depth() -> None:
    def open_at(limit: float, action: GateAction = DEEPEST) -> int | None:
        gate = Gate(max_perplexity_ratio_of={"prose": limit}, action=action)
        return undecided(gate, CURVE, lambda _: None)

    assert open_at(1.22) == 2
    assert open_at(1.822) == 3
    assert open_at(1.3) is None
    assert open_at(1.01) is None, "all of them exceed it"
    assert open_at(1.22, WARN) is None, "the deepest exceeds it"


def test_a_gate_without_domains_leaves_the_digest_as_it_was() -> None:
    spec = replace(SPEC, gate=Gate(max_perplexity_ratio=2))
    of_all = {"max_probe_drop": None, "max_perplexity_ratio": 2, "action": "warn"}
    assert spec.to_dict()["gate"] == of_all
    by_domain = Gate(max_perplexity_ratio=2, max_perplexity_ratio_of={"self": 3})
    assert replace(spec, gate=by_domain).digest() != spec.digest()


def test_a_perplexity_that_is_no_number_is_beyond_any_limit() -> None:
    broken = replace(QUALITY, perplexities=(10.0, 12.0, math.nan))
    assert len(judge(Gate(max_perplexity_ratio=1e9), broken, never).warnings) == 1


@pytest.mark.parametrize(
    ("make", "param"),
    [
        (Gate, "gate"),
        (lambda: Gate(max_probe_drop=-0.1), "gate.max_probe_drop"),
        (lambda: Gate(max_probe_drop=1.0), "gate.max_probe_drop"),
        (lambda: Gate(max_probe_drop=float("nan")), "gate.max_probe_drop"),
        (lambda: Gate(max_perplexity_ratio=0.9), "gate.max_perplexity_ratio"),
        (lambda: Gate(max_perplexity_ratio=float("inf")), "gate.max_perplexity_ratio"),
        (
            lambda: Gate(max_perplexity_ratio_of={"prose": 2, "code": 0.9}),
            "gate.max_perplexity_ratio_of.code",
        ),
        (
            lambda: replace(SPEC, evaluate=False, gate=Gate(max_perplexity_ratio_of={"self": 2})),
            "gate.max_perplexity_ratio_of",
        ),
        (
            lambda: replace(SPEC, evaluate=False, gate=Gate(max_perplexity_ratio=2)),
            "gate.max_perplexity_ratio",
        ),
    ],
)
def test_limits_that_make_no_sense_are_refused_by_name(
    make: Callable[[], object], param: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        make()
    assert caught.value.param == param


def test_a_spec_comes_back_from_json_with_its_gate() -> None:
    of_self = Gate(max_perplexity_ratio_of={"self": 2.0})
    for gate in (None, Gate(0.1), Gate(max_perplexity_ratio=2, action=REFUSE), of_self):
        spec = replace(SPEC, gate=gate)
        assert PruneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert gate_of(action=REFUSE, max_perplexity_ratio_of={}) is None
    assert gate_of(max_probe_drop=0.1, action=REFUSE) == Gate(0.1, action=REFUSE)
    by_domain = Gate(action=REFUSE, max_perplexity_ratio_of={"self": 2.0})
    assert gate_of(action=REFUSE, max_perplexity_ratio_of={"self": 2.0}) == by_domain


def test_manifests_keep_it_and_old_ones_have_none() -> None:
    quality = judge(Gate(0.4), QUALITY, lost_half)
    manifest = replace(RUN, quality=quality)
    assert Manifest.from_json(manifest.to_json()) == manifest
    told = legend(manifest, ())
    assert told[0] == "probe: 1.000 dense, 0.500 pruned, out of 1; a drop of 0.500 ± 0.000."
    assert told[1] == f"warning: {quality.warnings[0]}."
    old = json.loads(RUN.to_json())
    del old["quality"]["probe"], old["quality"]["warnings"]
    assert Manifest.from_json(json.dumps(old)) == RUN


def run(models_dir: Path, spec: PruneSpec, observer: Recorder) -> Manifest:
    return prune(
        spec,
        name="tiny@prn-1",
        target=models_dir.parent / "checkpoints" / "tiny@prn-1",
        models=ModelStore(models_dir),
        observer=observer,
    )


@pytest.fixture
def loss_by_gate(tiny_models_dir: Path) -> float:
    """The lower end of the ratio of perplexities, as a run without a gate finds it: above 1."""
    quality = run(tiny_models_dir, SPEC, Recorder()).quality
    shutil.rmtree(tiny_models_dir.parent / "checkpoints")
    [domain] = [domain for domain in quality.domains if domain.domain == "self"]
    low = domain.ratio(domain.served_after(2)).low
    assert low is not None
    assert low > 1.005
    return low


@pytest.mark.slow
@pytest.mark.parametrize("resident", Resident)
def test_a_run_asks_dense_and_pruned(
    tiny_models_dir: Path, few_questions: Sequence[Item], resident: Resident
) -> None:
    text = tiny_models_dir.parent / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=12, path=str(text))
    spec = replace(SPEC, calibration=calibration, resident=resident, gate=Gate(0.99))
    manifest = run(tiny_models_dir, spec, observer := Recorder())
    assert manifest.quality.warnings == ()
    assert observer.warnings == []
    probe, items = manifest.quality.probe, few_questions
    assert probe is not None
    directories = (tiny_models_dir / "tiny", tiny_models_dir.parent / "checkpoints" / manifest.name)
    for directory, score in zip(directories, (probe.dense, probe.pruned), strict=True):
        loaded = load(directory)
        answers = answer(InMemoryForward(loaded.model), loaded.tokenizer, items)
        assert score == summary(answers, digest(items))


@pytest.mark.slow
def test_a_job_beyond_its_gate_fails_and_publishes_nothing(
    job_store: JobStore,
    tiny_models_dir: Path,
    redis_url: str,
    loss_by_gate: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)
    limit = (1 + loss_by_gate) / 2
    job_ids = [
        job_store.create(replace(SPEC, gate=Gate(None, limit, action))).id
        for action in (REFUSE, WARN)
    ]
    for job_id in job_ids:
        task.run_job(job_id)
    refused, warned = (job_store.get(job_id) for job_id in job_ids)
    assert refused.status is JobStatus.FAILED
    assert refused.error is not None
    assert (refused.error.code, refused.error.param) == (
        "quality_gate",
        "gate.max_perplexity_ratio",
    )
    assert warned.status is JobStatus.SUCCEEDED
    store = CheckpointStore(tiny_models_dir.parent / "checkpoints")
    assert store.names() == [warned.checkpoint_name]
    (warning,) = store.manifest(warned.checkpoint_name).quality.warnings
    events = [event.message for event in job_store.events(warned.id) if event.level == "warn"]
    assert events == [warning]
    assert warning in refused.error.message


def test_a_run_publishes_no_more_removals_than_keep_its_gate(tiny_models_dir: Path) -> None:
    gate = Gate(max_perplexity_ratio_of={"self": 1.5}, action=DEEPEST)
    spec = replace(SPEC, num_remove=3, repair=Repair.RIDGE, gate=gate)
    manifest = run(tiny_models_dir, spec, observer := Recorder())
    target = tiny_models_dir.parent / "checkpoints" / manifest.name
    assert verify(target) == manifest
    assert len(manifest.removed_blocks) == 1
    assert len(json.loads((target / "removal.json").read_text())) == 1
    assert [path.name for path in (target / "repair").iterdir()] == [repair_file(1).split("/")[1]]
    assert load(target).model.config.num_hidden_layers == manifest.num_blocks - 1
    [domain] = [each for each in manifest.quality.domains if each.domain == "self"]
    high = domain.ratio(domain.served_after(1)).high
    assert high is not None
    assert high <= 1.5
    assert observer.warnings == list(manifest.quality.warnings)
    assert observer.warnings[0].startswith("not deeper: without 2 blocks, perplexity on self")
    assert observer.warnings[0] in (target / "README.md").read_text()
