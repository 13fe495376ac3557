"""Commands that read from object stores and send to them: models add, prune and export."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.main import app as command_line
from app.commands.prune import run_prune
from app.config import ServeSettings
from app.models.add import ModelNotAdded, add_model
from pruning.checkpoints.publish import CheckpointExists
from pruning.checkpoints.store import Manifest
from pruning.config import WorkerSettings
from pruning.models.lineage import ORIGIN_FILE
from pruning.models.store import ModelStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from pruning.storage.files import FileSystemStore
from pruning.storage.folder import FolderTaken
from pruning.storage.location import file_system, open_store
from pruning.storage.store import ObjectStore, StoreDenied, StoreUnavailable
from pruning.storage.transfer import received_manifest
from pruning.store_url import StoreUrl
from tests.support.api_fixtures import publish_pruned
from tests.support.hub_repository import WritableHub
from tests.support.object_stores import folder_store

NAME = "tiny@prn-1"


@pytest.fixture
def data_dir(tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_DEVICE", "cpu")
    return tiny_models_dir.parent


def spec(model: str) -> PruneSpec:
    calibration = CalibrationSpec(Dataset.SELF, num_samples=1, seqlen=8)
    return PruneSpec(model, 2, calibration=calibration, evaluate=False, repair=Repair.NONE)


def store_manifest(store: ObjectStore) -> Manifest:
    return received_manifest(store, NAME)[0]


def sleb(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, list(arguments))


@pytest.fixture(params=["s3", pytest.param("gs", marks=pytest.mark.slow)])
def bucket(request: pytest.FixtureRequest) -> str:
    """The URL of an empty bucket."""
    kind = {"s3": "s3_bucket", "gs": "gcs_bucket"}[request.param]
    return f"{request.param}://{request.getfixturevalue(kind)}"


@pytest.mark.slow
def test_a_model_of_a_bucket_is_pruned_into_a_store_and_added_from_there(
    data_dir: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{bucket}/models/tiny"
    exported = sleb("export", "tiny", "--to", url, "--json")
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["url"] == url
    assert list((data_dir / "export").glob("*")) == []
    folder = StoreUrl.parse(url)
    names = {path.rpartition("/")[2] for path in file_system(folder).find(folder.path)}
    assert {"config.json", "model.safetensors"} <= names
    elsewhere = WorkerSettings(data_dir=data_dir / "elsewhere", device="cpu")
    out = StoreUrl.parse(f"{bucket}/checkpoints/{NAME}")
    run_prune(spec(url), out, elsewhere, as_json=True)
    printed = capsys.readouterr()
    assert f"uploaded to {out}: " in printed.err
    assert json.loads(printed.out)["url"] == str(out)
    manifest = store_manifest(open_store(out.parent))
    assert (manifest.parent, len(manifest.removed_blocks)) == ("tiny", 2)
    assert not (elsewhere.data_dir / "outgoing" / NAME).exists()
    added = add_model(str(out), ServeSettings(data_dir=elsewhere.data_dir))
    assert added.name == "tiny-prn-1"
    assert json.loads((added / ORIGIN_FILE).read_text())["source"] == str(out)
    assert ModelStore(elsewhere.models_dir).inspect("tiny-prn-1").num_blocks == 4
    with pytest.raises(CheckpointExists, match="choose another --out, or use --overwrite"):
        run_prune(spec("tiny"), out, elsewhere, as_json=True)


def test_a_checkpoint_that_cannot_be_sent_is_kept_and_sent_by_the_same_command(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WorkerSettings(data_dir=data_dir, device="cpu")
    out = StoreUrl.parse(f"file://{data_dir}/store/{NAME}")

    def fail(_store: FileSystemStore, _name: str, _content: bytes) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemStore, "put_manifest", fail)
        with pytest.raises(StoreUnavailable, match=r"away; the checkpoint is kept in .*/outgoing/"):
            run_prune(spec("tiny"), out, settings, as_json=True)
    store = folder_store(data_dir / "store")
    assert store.versions() == {}
    monkeypatch.setattr("app.commands.prune.prune", None)  # it is not run again
    run_prune(spec("tiny"), out, settings, as_json=True)
    assert store.versions().keys() == {NAME}
    printed = capsys.readouterr()
    assert "uploaded to file:///" in printed.err
    assert json.loads(printed.out)["removed_blocks"] == [*store_manifest(store).removed_blocks]
    assert list((data_dir / "outgoing").iterdir()) == []


@pytest.mark.slow
def test_a_model_that_is_at_the_url_stays_unless_it_is_to_be_replaced(data_dir: Path) -> None:
    url = f"file://{data_dir}/there"
    publish_pruned(data_dir)
    assert sleb("export", "tiny", "--to", url).exit_code == 0
    refused = sleb("export", f"{NAME}-1", "--to", url)
    assert isinstance(refused.exception, FolderTaken)
    (data_dir / "there" / "old.safetensors").write_bytes(b"old")
    assert sleb("export", f"{NAME}-1", "--to", url, "--overwrite").exit_code == 0
    assert ModelStore(data_dir).inspect("there").num_blocks == 5
    assert not (data_dir / "there" / "old.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("by_xet", [False, True])
def test_a_model_is_exported_to_the_hub_with_one_commit(
    data_dir: Path,
    hub_repository: str,
    hub_with_repositories: WritableHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_xet: bool,
) -> None:
    """Also where huggingface_hub has Xet, and an upload takes longer than it lets one commit be."""
    if by_xet:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
        monkeypatch.setattr("huggingface_hub._upload_pipeline.MAX_COMMIT_INTERVAL", -1.0)
        monkeypatch.setattr("tests.support.hub_repository.LARGE_BYTES", 2**40)  # none is sent by it
    hub, repo_id = hub_with_repositories, f"{hub_repository}-tiny"
    exported = sleb("export", "tiny", "--to", f"hf://{repo_id}", "--json")
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["url"] == f"hf://{repo_id}"
    files = hub.repositories[repo_id]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert repo_id in hub.private
    files |= {"old.safetensors": b"old", "notes.txt": b"notes"}
    num_commits = hub.num_commits
    publish_pruned(data_dir)
    assert sleb("export", f"{NAME}-1", "--to", f"hf://{repo_id}").exit_code == 0
    assert hub.num_commits == num_commits + 1
    assert ("old.safetensors" in files, "notes.txt" in files) == (False, True)
    (tmp_path / "cloned").mkdir()
    for name, content in files.items():
        (tmp_path / "cloned" / name).write_bytes(content)
    assert ModelStore(tmp_path).inspect("cloned").num_blocks == 5
    hub.status = 403
    refused = sleb("export", "tiny", "--to", f"hf://{repo_id}")
    assert isinstance(refused.exception, StoreDenied)
    assert "set HF_TOKEN to a token with permission" in str(refused.exception)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("s3://bucket?x=1/y", "must be s3://BUCKET"),
        ("file:///none", "has no config.json"),
        ("file:///none/at-all", "has no config.json"),
    ],
)
def test_a_url_without_a_model_says_so(data_dir: Path, source: str, reason: str) -> None:
    with pytest.raises(ModelNotAdded, match=reason):
        add_model(source, ServeSettings(data_dir=data_dir))


def test_urls_need_the_permission_of_the_settings(data_dir: Path) -> None:
    settings = ServeSettings(data_dir=data_dir, model_sources=("s3://models/*",))
    with pytest.raises(ModelNotAdded, match="SLEB_MODEL_SOURCES allows"):
        add_model(f"file://{data_dir}/models/tiny", settings, name="other")


@pytest.mark.parametrize("option", [("export", "tiny", "--to"), ("prune", "tiny", "--out")])
def test_a_url_that_is_none_is_a_wrong_usage(data_dir: Path, option: tuple[str, ...]) -> None:
    assert data_dir.exists()
    needed = ("--num-remove", "1") if option[0] == "prune" else ()
    refused = sleb(*option, "s3://user@bucket/x", *needed)
    assert refused.exit_code == 2
    assert "must be s3://BUCKET" in refused.output
