"""Fixtures of shadow traffic."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import ServeSettings
from tests.support.api_fixtures import publish_pruned
from tests.support.shadow_traffic import Held, holding, share_of_controls


@pytest.fixture
def _published(data_dir: Path) -> None:
    publish_pruned(data_dir)


@pytest.fixture
def _without_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    share_of_controls(monkeypatch, 0.0)


@pytest.fixture
def settings(settings: ServeSettings) -> ServeSettings:
    return settings.model_copy(update={"shadow_share": 1.0})


@pytest.fixture
def held() -> Iterator[Held]:
    with holding(Held()) as engine:
        yield engine
