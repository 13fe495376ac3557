"""Published is whole and verified, or it is not there."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import (
    MANIFEST,
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointStore,
    Manifest,
    open_checkpoint,
    repair_of,
)
from pruning.models.store import load
from pruning.repair.plan import Cut
from pruning.repair.record import DepthRepair, Method, repair_file
from pruning.repair.repair import Repaired
from pruning.repair.stored import write_repair
from tests.support.checkpoints import FILES, manifest_of, write

REPAIRED = Repaired(Method.SCALE, {}, scales={Cut(2, 4): 1.5})


def writer(source: Path) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        for file in source.iterdir():
            (directory / file.name).write_bytes(file.read_bytes())
        write_repair(directory, 1, REPAIRED)

    return write


@pytest.fixture
def published(tmp_path: Path, tiny_model_dir: Path) -> Path:
    target = tmp_path / "checkpoints" / "tiny@prn-1"
    record = (DepthRepair(1, Method.SCALE, 0, {}),)
    publish(target, replace(manifest_of(), repair=record), writer(tiny_model_dir))
    return target


def test_a_published_checkpoint_is_listed_and_opens(published: Path) -> None:
    store = CheckpointStore(published.parent)
    assert store.names() == ["tiny@prn-1"]
    manifest = store.manifest("tiny@prn-1")
    assert manifest == Manifest.from_json(manifest.to_json())
    assert manifest.keep == (0, 2, 4, 5)
    assert manifest.keep_after(1) == (0, 1, 2, 4, 5)
    assert store.open("tiny@prn-1").model.config.num_hidden_layers == 6


@pytest.mark.parametrize("field", ["files", "quality", "removed_blocks"])
def test_a_manifest_says_which_of_its_fields_is_missing(published: Path, field: str) -> None:
    manifest = published / MANIFEST
    fields = json.loads(manifest.read_text())
    del fields[field]
    manifest.write_text(json.dumps(fields))
    with pytest.raises(CheckpointCorrupt, match=f"is not a manifest: .*{field}"):
        CheckpointStore(published.parent).manifest("tiny@prn-1")


def test_a_directory_without_manifest_is_no_checkpoint(published: Path) -> None:
    (published.parent / "half").mkdir()
    (published.parent / "half" / "config.json").write_text("{}")
    store = CheckpointStore(published.parent)
    assert store.names() == ["tiny@prn-1"]
    with pytest.raises(CheckpointNotFound):
        store.manifest("half")


def corrupt_a_byte(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": corrupt_a_byte,
    "a missing file": lambda path: (path / "tokenizer.json").unlink(),
    "surplus weights": lambda path: (path / "more.safetensors").write_bytes(b""),
    "a cut manifest": lambda path: (path / MANIFEST).write_text("{"),
    "a manifest of another kind": lambda path: (path / MANIFEST).write_text('{"name": 1}'),
    "a missing repair": lambda path: (path / repair_file(1)).unlink(),
    "an edited repair": lambda path: write_repair(path, 1, Repaired(Method.NONE, {})),
    "a surplus repair": lambda path: write_repair(path, 2, REPAIRED),
    "an edited config": lambda path: (path / "config.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed_on_opening(published: Path, damage: Callable[[Path], object]) -> None:
    damage(published)
    with pytest.raises(CheckpointCorrupt):
        open_checkpoint(published)


def test_a_repair_is_read_if_it_is_the_one_of_the_manifest(published: Path) -> None:
    assert repair_of(published, 1) == REPAIRED
    write_repair(published, 2, REPAIRED)
    with pytest.raises(CheckpointCorrupt, match=r"depth-2\.safetensors is not in the manifest"):
        repair_of(published, 2)
    write_repair(published, 1, Repaired(Method.NONE, {}))
    with pytest.raises(CheckpointCorrupt, match="changed after it was published"):
        repair_of(published, 1)
    (published / repair_file(1)).unlink()
    with pytest.raises(CheckpointCorrupt, match=r"depth-1\.safetensors is missing"):
        repair_of(published, 1)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".staging", "none"])
def test_names_cannot_leave_the_store(published: Path, name: str) -> None:
    with pytest.raises(CheckpointNotFound):
        CheckpointStore(published.parent).manifest(name)


def test_a_checkpoint_beside_the_store_is_not_in_it(published: Path) -> None:
    store = CheckpointStore(published.parent / "store")
    shutil.copytree(published, store.path("inside"))
    name = f"../{published.name}"
    assert store.manifest("inside")
    assert not store.holds(name)
    for ask in (store.path, store.manifest):
        with pytest.raises(CheckpointNotFound):
            ask(name)


def test_files_can_be_read_by_others(published: Path) -> None:
    assert all(file.stat().st_mode & 0o044 for file in published.rglob("*"))
    assert json.loads((published / MANIFEST).read_text())["format"] == 1
    assert load(published).model is not None


def test_the_files_of_a_tenant_are_counted(tmp_path: Path) -> None:
    for name, tenant in (("tiny@prn-1", "a"), ("tiny@prn-2", "a"), ("x@prn-3", "b"), ("y", None)):
        publish(tmp_path / name, replace(manifest_of(name), tenant=tenant), write)
    store, num_bytes = CheckpointStore(tmp_path), sum(map(len, FILES.values()))
    sizes = [store.num_bytes_of(tenant) for tenant in ("a", "b", "c")]
    assert sizes == [2 * num_bytes, num_bytes, 0]
    assert store.num_bytes_of("a", but_of_jobs={"prn-2", "prn-3"}) == num_bytes
    (tmp_path / "tiny@prn-1" / MANIFEST).write_text("{}")
    assert store.num_bytes_of("a") == num_bytes
