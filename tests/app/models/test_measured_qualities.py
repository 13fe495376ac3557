"""What int8 weights cost is known of the weights that it was measured on, and of no others."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.catalog import Catalog
from app.models.measured_qualities import FILE, MeasuredQualities
from pruning.checkpoints.store import CheckpointStore
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import ModelStore
from tests.support.tiny_directory import write_tiny_model

INT8 = "tiny+int8"
DOMAIN = DomainQuality("prose", "a text", 8, 64, "d1g", Measured(3.0, 0.1), (Measured(3.1, 0.01),))

PIQA = PairedTask("piqa", 0.5, 1000, both=60, dense_only=10, own_only=5, neither=25)


@pytest.fixture
def catalog(tiny_models_dir: Path) -> Catalog:
    qualities = MeasuredQualities(tiny_models_dir.parent)
    checkpoints = CheckpointStore(tiny_models_dir.parent / "checkpoints")
    return Catalog(ModelStore(tiny_models_dir), checkpoints, qualities=qualities)


def test_what_was_measured_of_a_replaced_model_is_forgotten(
    tiny_models_dir: Path, catalog: Catalog
) -> None:
    qualities, model = MeasuredQualities(tiny_models_dir.parent), tiny_models_dir / "tiny"
    qualities.record("tiny", fingerprint(model), {INT8: (DOMAIN,)})
    assert catalog.ratios(catalog.resolve(INT8)) == {"prose": DOMAIN.ratio(DOMAIN.raw[0])}
    write_tiny_model(model, seed=7)
    assert catalog.ratios(catalog.resolve(INT8)) == {}
    qualities.record("tiny", fingerprint(model), {"tiny@prn-1+int8": (DOMAIN,)})
    assert qualities.of_model("tiny", fingerprint(model)).keys() == {"tiny@prn-1+int8"}
    assert catalog.ratios(catalog.resolve(INT8)) == {}


def test_what_is_known_of_more_text_stays_and_so_do_other_domains(tmp_path: Path) -> None:
    qualities = MeasuredQualities(tmp_path)
    more, short = replace(DOMAIN, num_windows=24), replace(DOMAIN, num_windows=48, seqlen=8)
    for measured, known in ((DOMAIN, DOMAIN), (more, more), (DOMAIN, more), (short, more)):
        qualities.record("tiny", "weights", {INT8: (measured,)})
        assert qualities.of_model("tiny", "weights") == {INT8: (known,)}
    code = replace(DOMAIN, domain="code")
    qualities.record("tiny", "weights", {INT8: (code,)})
    assert qualities.of_model("tiny", "weights") == {INT8: (more, code)}


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 1, "models": {}}',
        '{"format": 2, "models": {"tiny": {"fingerprint": 3, "variants": {}}}}',
        '{"format": 2, "models": {"tiny": {}}}',
        '{"format": 2, "models": {"t": {"fingerprint": "", "variants": {}, "tasks": {"x": [1]}}}}',
    ],
)
def test_a_file_of_another_kind_has_no_measurements(
    tiny_models_dir: Path, catalog: Catalog, content: str
) -> None:
    (tiny_models_dir.parent / FILE).write_text(content)
    assert catalog.ratios(catalog.resolve(INT8)) == {}
