"""The gate in front of publishing: what passes, what is warned of, and what is refused."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory import legend
from pruning.evaluation.probe import Item, digest
from pruning.evaluation.probe_run import answer
from pruning.evaluation.quality import DomainQuality, Measured, Quality
from pruning.evaluation.quality_gate import QualityGateFailed, gated
from pruning.evaluation.results import ItemResult, Kind, ProbeComparison, compare, summary
from pruning.jobs.job import JobStatus
from pruning.jobs.store import JobStore
from pruning.models.forward import InMemoryForward
from pruning.models.store import ModelStore, load
from pruning.pipeline import prune
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Evaluation, Gate, GateAction, gate_of
from pruning.spec.prune import PruneSpec, Resident
from pruning.worker import task
from tests.support.pruning_runs import RUN
from tests.support.recorder import Recorder

WARN, REFUSE = GateAction.WARN, GateAction.REFUSE
SPEC = PruneSpec(
    "tiny",
    num_remove=2,
    calibration=CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12),
    evaluation=Evaluation(num_samples=200),
)
QUALITY = Quality((1.0, 2.0, 3.0), (10.0, 12.0, 15.0), "some text")


def lost_half() -> ProbeComparison:
    """Both answers of each of four are right, then one of both: a drop of 0.5 ± 0."""
    right = [ItemResult(Kind.JSON, is_chosen=True, is_written=True)] * 4
    half = [ItemResult(Kind.JSON, is_chosen=True, is_written=False)] * 4
    return compare(right, half, "d")


def never() -> ProbeComparison:
    raise AssertionError("asked, though no limit needs it")


@pytest.mark.parametrize("action", GateAction)
@pytest.mark.parametrize("gate", [Gate(max_perplexity_ratio=1.5), Gate(max_perplexity_ratio=1e9)])
def test_what_is_at_a_limit_or_below_passes(gate: Gate, action: GateAction) -> None:
    assert gated(replace(gate, action=action), QUALITY, never) == QUALITY
    with_probe = gated(Gate(0.5, 1.5, action), QUALITY, lost_half)
    assert with_probe == replace(QUALITY, probe=lost_half())


def test_what_is_beyond_a_limit_is_said_with_its_numbers() -> None:
    found = gated(Gate(0.4, 1.4), QUALITY, lost_half).warnings
    assert found == (
        "the probe's score went from 1.000 to 0.500, a drop of 0.500 ± 0.000 where 0.4 is allowed",
        "perplexity went from 10 to 15 on some text, 1.5 times as much where 1.4 is allowed",
    )
    with pytest.raises(QualityGateFailed, match=r"a drop of 0\.500.*; perplexity went") as caught:
        gated(Gate(0.4, 1.4, REFUSE), QUALITY, lost_half)
    assert caught.value.param == "gate.max_probe_drop"
    with pytest.raises(QualityGateFailed) as caught:
        gated(Gate(0.5, 1.4, REFUSE), QUALITY, lost_half)
    assert caught.value.param == "gate.max_perplexity_ratio"


def test_each_domain_has_its_own_limit() -> None:
    dense = (1.0, 2.0, 3.0)
    raw = (1.5, 2.5, 3.8)
    prose, code = (
        DomainQuality(
            domain, f"packaged {domain}", 3, 8, "d", Measured.of_dense(dense), measured, repaired
        )
        for domain, measured, repaired in (
            ("prose", (Measured.against(dense, raw),), ()),
            ("code", (Measured.against(dense, raw),), (Measured.against(dense, (1.2, 2.2, 3.21)),)),
        )
    )
    quality = replace(QUALITY, domains=(prose, code))
    found = gated(Gate(max_perplexity_ratio_of={"prose": 1.8, "code": 3.0}), quality, never)
    [warning] = found.warnings
    assert warning == (
        "perplexity on prose went from 7.389 to 13.46 (packaged prose, 3 windows of 8 tokens), "
        "1.822 (1.185 to 2.802) times as much where 1.8 is allowed; undecided, because the "
        "interval contains the limit"
    )
    undecided = Gate(max_perplexity_ratio_of={"prose": 1.8}, action=REFUSE)
    assert gated(undecided, quality, never).warnings == (warning,)
    beyond = Gate(max_perplexity_ratio_of={"prose": 1.1}, action=REFUSE)
    with pytest.raises(QualityGateFailed, match=r"where 1\.1 is allowed\. Remove"):
        gated(beyond, quality, never)
    kept = Gate(max_perplexity_ratio_of={"prose": 2.9}, action=REFUSE)
    assert gated(kept, quality, never).warnings == ()
    strict = Gate(max_perplexity_ratio_of={"prose": 2, "code": 1.05}, action=REFUSE)
    with pytest.raises(QualityGateFailed, match=r"on code went from 7\.389 to 9\.0") as caught:
        gated(strict, quality, never)
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
    on_all, on_prose = gated(gate, quality, never, control=8.0).warnings
    assert on_all.startswith("perplexity went from 8 of the control to 12 on")
    assert "1.5 times as much" in on_all
    assert "perplexity on prose went from 4.482 of the control to 9.025" in on_prose
    assert "2.014 times as much" in on_prose
    worse = replace(of_domain, control=Measured.against(dense, healed))
    assert not gated(gate, replace(quality, domains=(worse,)), never, control=11.0).warnings


def test_a_gate_without_domains_leaves_the_digest_as_it_was() -> None:
    spec = replace(SPEC, gate=Gate(max_perplexity_ratio=2))
    of_all = {"max_probe_drop": None, "max_perplexity_ratio": 2, "action": "warn"}
    assert spec.to_dict()["gate"] == of_all
    by_domain = Gate(max_perplexity_ratio=2, max_perplexity_ratio_of={"self": 3})
    assert replace(spec, gate=by_domain).digest() != spec.digest()


def test_a_perplexity_that_is_no_number_is_beyond_any_limit() -> None:
    broken = replace(QUALITY, perplexities=(10.0, 12.0, math.nan))
    assert len(gated(Gate(max_perplexity_ratio=1e9), broken, never).warnings) == 1


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
    assert gate_of(None, None, REFUSE) is None
    assert gate_of(0.1, None, REFUSE) == Gate(0.1, action=REFUSE)
    by_domain = Gate(action=REFUSE, max_perplexity_ratio_of={"self": 2.0})
    assert gate_of(None, None, REFUSE, {"self": 2.0}) == by_domain


def test_manifests_keep_it_and_old_ones_have_none() -> None:
    quality = gated(Gate(0.4), QUALITY, lost_half)
    manifest = replace(RUN, quality=quality)
    assert Manifest.from_json(manifest.to_json()) == manifest
    told = legend(manifest, ())
    assert told[0] == "probe: 1.000 dense, 0.500 pruned, at most 1; a drop of 0.500 ± 0.000."
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
