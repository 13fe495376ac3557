"""Data directories around the demo model, fetched once per machine, and around one in its place."""

import shutil
from pathlib import Path

import platformdirs
import pytest

from pruning.models.demo_model import NAME, ensure_demo_model


@pytest.fixture(scope="session")
def demo_model_dir() -> Path:
    """Kept between runs, beside other caches; the lock in there serves parallel test processes."""
    return ensure_demo_model(platformdirs.user_cache_path("sleb-serve-tests") / "models")


@pytest.fixture
def demo_data_dir(tmp_path: Path, demo_model_dir: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / NAME).symlink_to(demo_model_dir)
    return tmp_path


@pytest.fixture
def tiny_demo_dir(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """With a tiny model under the demo model's name, which the demo takes for it."""
    shutil.copytree(tiny_model_dir, tmp_path / "models" / NAME)
    return tmp_path
