"""The demo model, fetched once per machine, and a data directory of each test's own around it."""

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
