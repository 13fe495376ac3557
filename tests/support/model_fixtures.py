"""Fixtures over the tiny model directory, and what runs on it share; registered by conftest."""

import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pytest

from pruning.data.documents import Passage, passages
from pruning.evaluation.probe import Item, probe_items
from pruning.models import random_models
from pruning.models.store import LoadedModel, load
from tests.support.tiny import TINY_SHAPE
from tests.support.tiny_directory import write_tiny_model


@pytest.fixture(autouse=True, scope="session")
def _texts_are_cut_once() -> Iterator[None]:
    """A run on a tiny model cuts packaged texts into passages for a tenth of its time."""

    @lru_cache(maxsize=200)
    def cut(documents: Sequence[str], min_characters: int) -> Sequence[Passage]:
        return passages(documents, min_characters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pruning.data.documents.passages",
            lambda documents, min_characters: list(cut(tuple(documents), min_characters)),
        )
        yield


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests: read only."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_loaded(tiny_model_dir: Path) -> LoadedModel:
    return load(tiny_model_dir)


@pytest.fixture
def tiny_models_dir(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A models directory of the test's own, with the model named tiny."""
    models_dir = tmp_path / "models"
    shutil.copytree(tiny_model_dir, models_dir / "tiny")
    return models_dir


@pytest.fixture
def few_questions(monkeypatch: pytest.MonkeyPatch) -> Sequence[Item]:
    """The probe asks four questions of each kind during the test; returns all of them."""
    for module in ("pruning.evaluation.quality_gate", "app.commands.evaluate"):
        monkeypatch.setattr(f"{module}.probe_items", partial(probe_items, num_items=4))
    return probe_items(num_items=4)


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tiny shape, which is among the published ones during the test."""
    monkeypatch.setattr(random_models, "SHAPES", {**random_models.SHAPES, "tiny": TINY_SHAPE})
    return "tiny"
