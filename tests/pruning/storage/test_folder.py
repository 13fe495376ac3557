"""A model at a URL under its own names: what a bucket of others may hold, and what is replaced."""

from pathlib import Path

import boto3
import pytest

from pruning.storage.folder import FileOutside, NotAModelRepository, StoredFolder, check_folder
from pruning.storage.store import StoreUnavailable
from pruning.store_url import StoreUrl

OUTSIDE = ("../evil.json", "a/../../evil.json", "/etc/evil.json", "a//evil.json", "./config.json")


def folder_of(path: Path) -> StoredFolder:
    return StoredFolder(StoreUrl.parse(f"file://{path}"))


def write(directory: Path, **files: str) -> Path:
    directory.mkdir()
    for name, content in files.items():
        (directory / name.replace("_", ".")).write_text(content)
    return directory


@pytest.mark.parametrize("key", OUTSIDE)
def test_a_bucket_whose_keys_lead_out_of_the_folder_is_refused(s3_bucket: str, key: str) -> None:
    s3 = boto3.client("s3")
    s3.put_object(Bucket=s3_bucket, Key="models/tiny/config.json", Body=b"{}")
    s3.put_object(Bucket=s3_bucket, Key="models/tiny/sub/", Body=b"")  # as consoles make folders
    folder = StoredFolder(StoreUrl.parse(f"s3://{s3_bucket}/models/tiny"))
    assert folder.sizes == {"config.json": 2}
    s3.put_object(Bucket=s3_bucket, Key=f"models/tiny/{key}", Body=b"evil")
    with pytest.raises(FileOutside, match="a path outside of its folder"):
        _ = folder.sizes


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_file_is_written_outside_of_the_directory(tmp_path: Path, name: str) -> None:
    folder = folder_of(write(tmp_path / "model", config_json="{}"))
    (tmp_path / "evil.json").write_text("evil")
    with pytest.raises(FileOutside):
        folder.fetch([name], write(tmp_path / "to"))
    assert list((tmp_path / "to").iterdir()) == []


def test_only_the_weights_of_the_earlier_model_are_deleted(tmp_path: Path) -> None:
    there = write(tmp_path / "there", config_json="old", notes_txt="mine", a_safetensors="old")
    (there / "sub").mkdir()
    (there / "sub" / "a.safetensors").write_text("of another program")
    (there / "model.safetensors.index.json").write_text("old")
    new = write(tmp_path / "new", config_json="new", model_safetensors="new")
    folder_of(there).send(new, overwrite=True)
    found = {str(path.relative_to(there)): path.read_text() for path in there.rglob("*.*")}
    assert found == {
        "config.json": "new",
        "model.safetensors": "new",
        "notes.txt": "mine",
        "sub/a.safetensors": "of another program",
    }


@pytest.mark.parametrize("num_files", [0, 1, 2])
def test_a_send_that_fails_leaves_no_model_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_files: int
) -> None:
    there = write(tmp_path / "there", config_json="old", model_safetensors="old")
    new = write(tmp_path / "new", config_json="new", model_safetensors="new", z_txt="new")
    folder = folder_of(there)
    put, calls = folder._system.put_file, iter(range(9))

    def fail(source: str, target: str) -> None:
        if next(calls) == num_files:
            raise OSError("away")
        put(source, target)

    monkeypatch.setattr(folder._system, "put_file", fail)
    with pytest.raises(StoreUnavailable, match="away"):
        folder.send(new, overwrite=True)
    assert not (there / "config.json").exists()
    folder.send(new, overwrite=True)
    assert {path.read_text() for path in there.iterdir()} == {"new"}


@pytest.mark.parametrize("url", ["hf://datasets/org/name", "hf://org/name/folder"])
def test_a_model_goes_to_a_repository_of_a_model(url: str) -> None:
    with pytest.raises(NotAModelRepository, match="expected hf://ORG/NAME"):
        check_folder(StoreUrl.parse(url), overwrite=False)
