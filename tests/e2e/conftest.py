"""Data directories with the demo model, downloaded once per machine, or with a tiny model."""

import shutil
from pathlib import Path

import platformdirs
import pytest

from pruning.models.demo_model import NAME, ensure_demo_model


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """The demo model in the user's cache. A lock serializes parallel test processes."""
    return ensure_demo_model(platformdirs.user_cache_path("sleb-serve-tests") / "models")


@pytest.fixture
def demo_data_dir(tmp_path: Path, demo_model_dir: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / NAME).symlink_to(demo_model_dir)
    return tmp_path


@pytest.fixture
def tiny_demo_dir(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A data directory in which a tiny model has the name of the demo model."""
    shutil.copytree(tiny_model_dir, tmp_path / "models" / NAME)
    return tmp_path
