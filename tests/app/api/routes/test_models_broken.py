"""Broken model folders: a 4xx within seconds for each, and none of them hides the others."""

import ctypes
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis

from app.config import ServeSettings
from app.models.catalog import Catalog
from pruning.checkpoints.store import CheckpointStore
from pruning.models.store import ModelStore, NotAModel
from tests.support.api_fixtures import publish_pruned
from tests.support.serving import LocalClient, local_api

_Result = TypeVar("_Result")

MUTATIONS: dict[str, list[Any]] = {
    "dtype": ["foo", 5, [], "float8_e4m3fn", "int8"],
    "torch_dtype": ["foo"],
    "vocab_size": [10**9, 10**18, -1, 0, "x", None],
    "hidden_size": [10**7, 0, "x"],
    "num_hidden_layers": [0, 10**6, "x"],
    "hidden_act": ["foo", 5],
    "rope_parameters": [{"rope_type": "foo"}, "x", {"rope_theta": 0}],
    "max_position_embeddings": [-5, 0, "x"],
    "num_attention_heads": [0, -1, 7],
    "num_key_value_heads": [0, 3],
    "head_dim": [0, -2],
    "intermediate_size": [10**9],
    "quantization_config": [5, "x", {}],
}
TEXTS = {"empty": "", "list": "[]", "null-character": "\0", "deep": "[" * 100_000}
UNPRIVILEGED_UID = 65534


def write_broken(models_dir: Path) -> list[str]:
    """A copy of tiny for each mutation of its config; their names."""
    good = json.loads((models_dir / "tiny" / "config.json").read_text())
    good["torch_dtype"] = good.pop("dtype")  # its old name, which the new one overrides
    configs = {
        f"{field}-{number}".replace("_", "-"): json.dumps({**good, field: value})
        for field, values in MUTATIONS.items()
        for number, value in enumerate(values)
    }
    for name, text in (configs | TEXTS).items():
        shutil.copytree(models_dir / "tiny", models_dir / name)
        (models_dir / name / "config.json").write_text(text)
    return list(configs | TEXTS)


@pytest.fixture
def broken(data_dir: Path) -> list[str]:
    return write_broken(data_dir / "models")


@pytest.fixture
def client(
    broken: list[str], settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> Iterator[LocalClient]:
    assert broken
    redis_client.ping()
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


def test_broken_configs_hide_no_model_and_are_4xx(client: LocalClient, broken: list[str]) -> None:
    names = {model["id"]: model for model in client.get("/models").json()["data"]}
    assert set(names) == {"tiny", *broken}
    assert names["tiny"]["error"] is None
    assert "tiny" in [model["id"] for model in client.get("/v1/models").json()["data"]]
    for name in broken:
        assert client.get(f"/models/{name}").status_code == 200, name
        job = {"model": name, "num_remove": 1, "dry_run": True}
        assert client.post("/prune-jobs", json=job).status_code in (200, 422), name
        answer = client.post("/generate", json={"model": name, "prompt": "a"})
        assert answer.status_code == 422, (name, answer.text)
        assert answer.elapsed.total_seconds() < 5, name  # a guard on a loaded machine; 0.05 s idle
    good = client.post("/generate", json={"model": "tiny", "prompt": "a", "max_new_tokens": 1})
    assert good.status_code == 200


def without_rights(work: Callable[[], _Result]) -> _Result:
    """The result of the work, in a thread whose files are opened as a user without rights."""
    libc = ctypes.CDLL(None)
    with ThreadPoolExecutor(1, initializer=lambda: libc.setfsuid(UNPRIVILEGED_UID)) as pool:
        return pool.submit(work).result()


@pytest.fixture
def readable(tmp_path: Path) -> Path:
    """The folder of the test, which the user without rights may enter."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o055)
    return tmp_path


def test_a_folder_that_may_not_be_read_hides_no_other(data_dir: Path, readable: Path) -> None:
    assert readable
    models, checkpoints = data_dir / "models", data_dir / "checkpoints"
    publish_pruned(data_dir)
    publish_pruned(data_dir, job="prn-2")
    shutil.copytree(models / "tiny", models / "locked")
    shutil.copytree(models / "tiny", models / "unreadable")
    for file in data_dir.rglob("*.*"):
        file.chmod(file.stat().st_mode | 0o055)
    (models / "locked").chmod(0)
    (models / "unreadable" / "config.json").chmod(0)
    (checkpoints / "tiny@prn-2").chmod(0)
    (checkpoints / "tiny@prn-1").chmod(0o755)
    store = ModelStore(models)
    catalog = Catalog(store, CheckpointStore(checkpoints))
    entries = {entry.name: entry for entry in without_rights(catalog.entries)}
    assert {"tiny", "tiny@-1", "tiny@prn-1", "unreadable"} <= set(entries)
    assert entries["tiny"].error is None
    assert entries["unreadable"].error
    for name in ("locked", "unreadable"):
        with pytest.raises(NotAModel, match="cannot read"):
            without_rights(lambda: store.inspect(name))  # noqa: B023 - called at once
    models.chmod(0)
    checkpoints.chmod(0)
    assert without_rights(catalog.dense_names) == []
    without_rights(catalog.entries)
    models.chmod(0o755)
    checkpoints.chmod(0o755)
