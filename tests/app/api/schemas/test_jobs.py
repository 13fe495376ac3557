"""The body of a pruning job: the fields and the defaults of the spec, and of the job."""

from dataclasses import MISSING, fields
from typing import Any

import pytest
from pydantic import BaseModel

from app.api.schemas.calibration import CalibrationBody, EvaluationBody, SourceBody
from app.api.schemas.gate import GateBody
from app.api.schemas.heal import HealBody
from app.api.schemas.jobs import PruneJobBody
from pruning.spec.calibration import CalibrationMix, CalibrationSpec
from pruning.spec.evaluation import Evaluation, Gate
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec

OF_THE_JOB = {"priority", "metadata", "webhook", "reuse_search", "dry_run"}
FULL: dict[str, Any] = {
    "model": "m",
    "sparsity": 0.25,
    "calibration": [
        {"dataset": "c4", "sampling": "rows", "num_samples": 8, "seqlen": 32, "seed": 3},
        {"dataset": "file", "path": "a.txt", "num_samples": 8, "seqlen": 32, "weight": 2.5},
    ],
    "protect_first": 2,
    "protect_last": 0,
    "dtype": "float32",
    "metric": "cosine",
    "gate": {"max_probe_drop": 0.1, "action": "refuse", "max_perplexity_ratio_of": {"self": 2.0}},
    "quantize": "int8",
    "tasks": ["piqa"],
    "task_questions": 20,
    "repair": "scale",
    "evaluation": {"num_samples": 9, "margin": 0.1},
    "heal": {"num_tokens": 500, "rank": 2, "control": False},
}


@pytest.mark.parametrize(
    ("body", "spec", "own"),
    [
        (PruneJobBody, PruneSpec, OF_THE_JOB),
        (CalibrationBody, CalibrationSpec, set()),
        (SourceBody, CalibrationSpec, {"weight"}),
        (GateBody, Gate, set()),
        (HealBody, Heal, set()),
        (EvaluationBody, Evaluation, set()),
    ],
)
def test_a_body_has_the_fields_and_defaults_of_its_spec(
    body: type[BaseModel], spec: type, own: set[str]
) -> None:
    expected = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(spec)
    }
    expected.pop("removed", None)  # of older releases: a new job has none
    found = {name: field for name, field in body.model_fields.items() if name not in own}
    assert found.keys() == expected.keys()
    defaults = {
        name: MISSING if each.is_required() else each.get_default(call_default_factory=True)
        for name, each in found.items()
    }
    if body is CalibrationBody:
        assert (defaults.pop("dataset"), expected.pop("dataset")) == (None, MISSING)
    if body is PruneJobBody:
        text = PruneSpec.from_dict({"model": "m", "num_remove": 1}).calibration
        assert text == expected["calibration"]
        assert defaults.pop("calibration") == CalibrationBody()
        del expected["calibration"]
        assert defaults.pop("evaluation") == EvaluationBody()
        assert expected.pop("evaluation") == Evaluation()
    assert defaults == expected


def test_a_body_without_settings_is_the_spec_of_all_defaults() -> None:
    body = PruneJobBody.model_validate({"model": "m", "num_remove": 2})
    assert PruneSpec.from_dict(body.spec_fields()) == PruneSpec("m", num_remove=2)


def test_every_setting_of_a_body_reaches_the_spec() -> None:
    spec = PruneSpec.from_dict(PruneJobBody.model_validate(FULL).spec_fields())
    assert isinstance(spec.calibration, CalibrationMix)
    wire = spec.to_dict()
    for name, value in FULL.items():
        if name == "calibration":
            pairs = zip(wire[name], value, strict=True)
            assert all(got.items() >= sent.items() for got, sent in pairs)
        elif name in {"gate", "heal", "evaluation"}:
            assert wire[name].items() >= value.items()
        else:
            assert wire[name] == value
