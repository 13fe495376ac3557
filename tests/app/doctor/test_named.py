"""``sleb doctor NAME``: names of the data directory first, and the hub asked once."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session

from tests.support.api_fixtures import publish_pruned
from tests.support.command_line import sleb
from tests.support.hub_server import Hub, Repo, hub_server, use_hub

LLAMA = "llama is supported; the model has 6 blocks"


@pytest.fixture
def data_dir(tiny_models_dir: Path) -> Path:
    return tiny_models_dir.parent


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Iterator[Hub]:
    """It has the model org/tiny."""
    with hub_server() as hub:
        use_hub(monkeypatch, hub.url)
        hub.repos["org/tiny"] = Repo(data_dir / "models" / "tiny")
        yield hub
        close_session()


def doctor(data_dir: Path, name: str) -> tuple[int, list[dict[str, Any]]]:
    ran = sleb(data_dir, "doctor", name, "--json")
    return ran.returncode, json.loads(ran.stdout)["findings"]


def test_names_of_the_data_directory_are_known_without_the_hub(data_dir: Path, hub: Hub) -> None:
    checkpoint = publish_pruned(data_dir, 2).name
    sleb(data_dir, "models", "alias", "prod", f"{checkpoint}-1")
    for name in ("tiny", "tiny@-1", "tiny+int8", checkpoint, f"{checkpoint}-1", "prod"):
        code, [family, *_] = doctor(data_dir, name)
        assert (code, family["said"]) == (0, LLAMA), name
    shutil.rmtree(data_dir / "models" / "tiny")
    code, [family, *_] = doctor(data_dir, checkpoint)
    assert (code, family["said"]) == (0, "llama is supported; the model has 4 blocks")
    code, [unknown] = doctor(data_dir, "tinny")
    assert (code, unknown["check"]) == (1, "model")
    assert "no model named 'tinny'" in unknown["said"]
    assert "sleb models add" in unknown["advice"]
    assert hub.num_requests == 0


def test_a_directory_is_taken_as_it_is(
    data_dir: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_dir)
    for name in ("models/tiny", str(data_dir / "models" / "tiny")):
        assert doctor(data_dir, name)[1][0]["said"] == LLAMA
    assert hub.num_requests == 0


def test_of_a_model_of_the_hub_only_the_config_is_fetched(data_dir: Path, hub: Hub) -> None:
    code, [family, *_] = doctor(data_dir, "org/tiny")
    assert (code, family["said"]) == (0, LLAMA)
    assert set(hub.fetched) <= {"config.json"}  # or it is in the cache of the hub


def test_a_hub_that_does_not_answer_is_asked_once(data_dir: Path, hub: Hub) -> None:
    hub.is_broken = True
    code, [found] = doctor(data_dir, "org/tiny")
    assert (code, found["check"]) == (1, "model")
    assert hub.url in found["said"]
    assert hub.num_requests == 1
