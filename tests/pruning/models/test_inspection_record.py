"""The record of inspected models: it speaks for unchanged files only, and is never in the way."""

import json
import shutil
from pathlib import Path

import pytest

from pruning.models import store
from pruning.models.inspection_record import FILE
from pruning.models.store import ModelStore, NotAModel


@pytest.fixture
def root(tiny_models_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_models_dir / "tiny", tmp_path / "tiny")
    return tmp_path


def _refuse(*_arguments: object) -> None:
    raise AssertionError("the config was read again")


def test_another_process_does_not_read_the_config_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ModelStore(root).inspect("tiny")
    monkeypatch.setattr(store, "read_config", _refuse)
    assert ModelStore(root).inspect("tiny") == found


def test_a_changed_config_is_read_again(root: Path) -> None:
    ModelStore(root).inspect("tiny")
    file = root / "tiny" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 0}))
    with pytest.raises(NotAModel, match="vocab_size=0"):
        ModelStore(root).inspect("tiny")


@pytest.mark.parametrize("text", ["", "[]", '{"versions": []}', "{"])
def test_a_broken_record_is_made_again(root: Path, text: str) -> None:
    (root / FILE).write_text(text)
    found = ModelStore(root).inspect("tiny")
    assert found.num_blocks == 6
    assert json.loads((root / FILE).read_text())["models"]["tiny"]["fields"]["num_blocks"] == 6


@pytest.mark.parametrize("field", [{"colour": "red"}, {"model_type": "x"}, None, [], 7])
def test_fields_of_another_shape_are_read_again(root: Path, field: object) -> None:
    """As a checkout leaves them whose version did not change with its code."""
    expected = ModelStore(root).inspect("tiny")
    record = json.loads((root / FILE).read_text())
    entry = record["models"]["tiny"]
    entry["fields"] = {**entry["fields"], **field} if isinstance(field, dict) else field
    (root / FILE).write_text(json.dumps(record))
    assert ModelStore(root).inspect("tiny") == expected
    assert json.loads((root / FILE).read_text())["models"]["tiny"]["fields"]["num_blocks"] == 6


@pytest.mark.parametrize("entry", [None, 7, [], {}, {"stamp": []}])
def test_an_entry_of_another_shape_is_made_again(root: Path, entry: object) -> None:
    expected = ModelStore(root).inspect("tiny")
    record = json.loads((root / FILE).read_text())
    for models in ({"tiny": entry}, entry):
        (root / FILE).write_text(json.dumps({**record, "models": models}))
        assert ModelStore(root).inspect("tiny") == expected


def test_the_record_of_other_versions_does_not_count(root: Path) -> None:
    ModelStore(root).inspect("tiny")
    record = json.loads((root / FILE).read_text())
    record["models"]["tiny"]["fields"]["num_blocks"] = 99
    (root / FILE).write_text(json.dumps(record))
    assert ModelStore(root).inspect("tiny").num_blocks == 99  # it is read
    (root / FILE).write_text(json.dumps({**record, "versions": ["0", "0"]}))
    assert ModelStore(root).inspect("tiny").num_blocks == 6


def test_a_removed_model_leaves_the_record(root: Path) -> None:
    models = ModelStore(root)
    models.inspect("tiny")
    shutil.copytree(root / "tiny", root / "other")
    shutil.rmtree(root / "tiny")
    models.inspect("other")
    assert set(json.loads((root / FILE).read_text())["models"]) == {"other"}
