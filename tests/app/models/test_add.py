"""A model is added complete, checked and without code, or not at all."""

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session, constants
from safetensors.torch import load_file, save_file

from app.config import ServeSettings
from app.models.add import ModelNotAdded, add_model
from app.models.hub import HubError
from pruning.models.lineage import ORIGIN_FILE, Lineage, Provenance, lineage_of
from pruning.models.store import ModelStore
from tests.support.command_line import sleb
from tests.support.hostile_models import tokenizers, write_changed
from tests.support.hub_server import TOKEN, Hub, Repo, hub_server, use_hub
from tests.support.quantized_files import write_compressed_tensors, write_fp8, write_mxfp4
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import edit_config

ID = "org/tiny"
PICKLE = b"\x80\x04."  # what must never be read


@pytest.fixture
def hub(tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, which has many files besides those that are needed."""
    files = tiny_models_dir / "tiny"
    for name in ("pytorch_model.bin", "modeling_tiny.py", "optimizer.pt", "more.safetensors"):
        (files / name).write_bytes(PICKLE)
    (files / "README.md").write_text("---\nlicense: mit\nlanguage: [en, fr]\n---\n# tiny\n")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with hub_server() as hub:
        use_hub(monkeypatch, hub.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tiny_models_dir / "no token"))
        hub.repos[ID] = Repo(files.rename(tiny_models_dir.parent / "on the hub"))
        yield hub
        close_session()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def settings_of(data_dir: Path, *sources: str) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, model_sources=sources or None)


@pytest.mark.parametrize("write", [write_fp8, write_compressed_tensors, write_mxfp4])
def test_quantized_weights_are_added_as_plain_ones(
    write: Callable[[Path], dict[str, torch.Tensor]],
    tmp_path: Path,
    data_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    meant = write(tmp_path / "quantized")
    path = add_model(str(tmp_path / "quantized"), settings_of(data_dir))
    written = load_file(path / "model.safetensors")
    assert written.keys() == meant.keys()
    for name, values in written.items():
        assert values.dtype == torch.bfloat16
        torch.testing.assert_close(values, meant[name].to(torch.bfloat16), msg=name)
    assert ModelStore(data_dir / "models").load(path.name).model.dtype == torch.bfloat16
    method = json.loads((tmp_path / "quantized" / "config.json").read_text())
    said = f"are quantized ({method['quantization_config']['quant_method']})"
    assert said in capsys.readouterr().err
    assert "dequantized from" in json.loads((path / ORIGIN_FILE).read_text())["conversion"]
    assert not (path / "plain").exists()


def left_behind(data_dir: Path) -> list[str]:
    """All files in the models directory."""
    return sorted(
        str(path.relative_to(data_dir / "models"))
        for path in (data_dir / "models").rglob("*")
        if path.name != ".staging"
    )


def origin_of(target: Path) -> dict[str, Any]:
    origin: dict[str, Any] = json.loads((target / ORIGIN_FILE).read_text())
    return origin


def test_a_model_of_the_hub_is_fetched_without_what_could_run_code(
    data_dir: Path, hub: Hub
) -> None:
    """With the command ``sleb models add``."""
    ran = sleb(data_dir, "models", "add", ID)
    assert ran.returncode == 0, ran.stderr
    assert str(data_dir / "models" / "tiny") in ran.stdout
    fetched = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"}
    fetched |= {"tokenizer.json", "tokenizer_config.json", "README.md"}
    assert set(hub.fetched) == fetched
    files = [f"tiny/{name}" for name in (*fetched, ORIGIN_FILE)]
    assert left_behind(data_dir) == sorted(["tiny", *files])
    origin = origin_of(data_dir / "models" / "tiny")
    assert (origin["source"], origin["revision"], origin["commit"]) == (ID, None, "c" * 40)
    said = Provenance("mit", languages=("en", "fr"))
    assert lineage_of(data_dir / "models" / "tiny") == Lineage(ID, "c" * 40, said)
    assert ModelStore(data_dir / "models").load("tiny").model is not None
    assert [model["id"] for model in json.loads(sleb(data_dir, "models", "--json").stdout)] == [
        "tiny"
    ]
    again = sleb(data_dir, "models", "add", ID)
    told = " ".join(again.stderr.split())  # a narrow terminal breaks lines
    assert (again.returncode, "already exists" in told) == (1, True)
    assert "Traceback" not in again.stderr


def test_a_revision_and_another_name_are_told_apart(data_dir: Path, hub: Hub) -> None:
    hub.repos[ID] = Repo(hub.repos[ID].files, commit="d" * 40, branches=("v1",))
    target = add_model(ID, settings_of(data_dir), name="old", revision="v1")
    assert target == data_dir / "models" / "old"
    assert (origin_of(target)["revision"], origin_of(target)["commit"]) == ("v1", "d" * 40)


def test_shards_come_as_the_index_names_them(data_dir: Path, hub: Hub, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "shards", "llama", layout="shards")
    (tmp_path / "shards" / "more.safetensors").write_bytes(PICKLE)
    hub.repos[ID] = Repo(tmp_path / "shards")
    add_model(ID, settings_of(data_dir))
    shards = [name for name in hub.fetched if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert "more.safetensors" not in shards
    assert ModelStore(data_dir / "models").load("tiny").model is not None


@pytest.mark.parametrize(
    ("needs", "says"), [("GatedRepo", "is gated"), ("RepoNotFound", "not found, or private")]
)
def test_what_is_not_for_everybody_comes_with_a_token(
    data_dir: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, needs: str, says: str
) -> None:
    hub.repos[ID] = Repo(hub.repos[ID].files, needs=needs)
    with pytest.raises(HubError, match=says):
        add_model(ID, settings_of(data_dir))
    assert hub.fetched == left_behind(data_dir) == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert add_model(ID, settings_of(data_dir)).is_dir()


Change = Callable[[Hub, pytest.MonkeyPatch], object]


def nothing(_hub: Hub, _patch: pytest.MonkeyPatch) -> None:
    pass


def unreachable(_hub: Hub, patch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free_port = probe.getsockname()[1]
    use_hub(patch, f"http://127.0.0.1:{free_port}")


def offline(_hub: Hub, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def out_of_order(hub: Hub, _patch: pytest.MonkeyPatch) -> None:
    hub.is_broken = True


REFUSALS: dict[str, tuple[str, dict[str, Any], Change, str]] = {
    "unknown": ("org/none", {}, nothing, "not found"),
    "no such revision": (ID, {"revision": "v9"}, nothing, "no revision 'v9'"),
    "unreachable": (ID, {}, unreachable, "cannot reach"),
    "offline": (ID, {}, offline, "cannot reach"),
    "out of order": (ID, {}, out_of_order, "status 500"),
    "no id": ("tiny", {}, nothing, "or ORG/NAME of a model"),
    "no id either": ("a/b/c", {}, nothing, "or ORG/NAME of a model"),
    "no name": (ID, {"name": "../x"}, nothing, "invalid model name"),
}


@pytest.mark.parametrize(
    ("source", "options", "change", "says"), REFUSALS.values(), ids=REFUSALS.keys()
)
def test_what_cannot_be_had_is_one_clear_message(
    data_dir: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    options: dict[str, Any],
    change: Change,
    says: str,
) -> None:
    change(hub, monkeypatch)
    with pytest.raises((ModelNotAdded, HubError), match=says):
        add_model(source, settings_of(data_dir), **options)
    assert hub.fetched == left_behind(data_dir) == []


@pytest.mark.parametrize("allowed", [["org/*"], ["other/*", ID], ["*"]])
def test_what_is_allowed_is_fetched(data_dir: Path, hub: Hub, allowed: list[str]) -> None:
    assert add_model(ID, settings_of(data_dir, *allowed)).is_dir()
    assert hub.fetched


@pytest.mark.parametrize("allowed", [["other/*", "org/tin"], ["ORG/*"], []])
def test_what_is_not_allowed_is_not_even_looked_for(
    data_dir: Path, hub: Hub, allowed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_MODEL_SOURCES", json.dumps(allowed))
    with pytest.raises(ModelNotAdded, match=re.escape(f"allows {', '.join(allowed) or 'none'}")):
        add_model(ID, ServeSettings(data_dir=data_dir))
    assert hub.num_requests == 0


def only_pickles(files: Path) -> None:
    (files / "model.safetensors").unlink()


def cut_off(files: Path) -> None:
    data = (files / "model.safetensors").read_bytes()
    (files / "model.safetensors").write_bytes(data[:-100])


def one_tensor_less(files: Path) -> None:
    tensors = load_file(files / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, files / "model.safetensors", metadata={"format": "pt"})


def foreign_index(files: Path) -> None:
    (files / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (files / "model.safetensors.index.json").write_text(json.dumps(index))


def remote_code(files: Path) -> None:
    edit_config(files, model_type="tiny_own", auto_map={"AutoConfig": "modeling_tiny.Config"})


DEFECTS = {
    "only pickles": (only_pickles, "only optimizer.pt, pytorch_model.bin: convert"),
    "cut off": (cut_off, "cannot load"),
    "one tensor less": (one_tensor_less, "1 missing keys"),
    "a foreign index": (foreign_index, "does not list its files"),
    "remote code": (remote_code, "requires custom code"),
    "another family": (lambda files: edit_config(files, model_type="bert"), "not supported"),
    "more blocks": (lambda files: edit_config(files, num_hidden_layers=9), "missing keys"),
    "no config": (lambda files: (files / "config.json").unlink(), "no config.json"),
    "no tokenizer": (lambda files: (files / "tokenizer.json").unlink(), "cannot load the token"),
}


@pytest.mark.parametrize(("damage", "says"), DEFECTS.values(), ids=DEFECTS.keys())
def test_a_model_that_could_not_be_served_never_appears(
    tiny_models_dir: Path, data_dir: Path, damage: object, says: str
) -> None:
    """From a directory, which takes the same path as a download."""
    files = tiny_models_dir / "tiny"
    for name in ("pytorch_model.bin", "optimizer.pt", "modeling_tiny.py"):
        (files / name).write_bytes(PICKLE)
    assert callable(damage)
    damage(files)
    with pytest.raises(ModelNotAdded, match=says):
        add_model(str(files), ServeSettings(data_dir=data_dir))
    assert left_behind(data_dir) == []


def test_a_directory_is_copied(tiny_models_dir: Path, data_dir: Path) -> None:
    files = tiny_models_dir / "tiny"
    (files / "pytorch_model.bin").write_bytes(PICKLE)
    target = add_model(str(files), ServeSettings(data_dir=data_dir), name="copy")
    assert target == data_dir / "models" / "copy"
    assert not (target / "pytorch_model.bin").exists()
    assert ModelStore(data_dir / "models").load("copy").model is not None
    assert json.loads((target / ORIGIN_FILE).read_text())["source"] == str(files)
    assert all(file.stat().st_mode & 0o044 for file in target.iterdir())


@pytest.mark.parametrize("name", ["LICENSE", "vocab.json", "notes.txt", "model.safetensors"])
def test_a_link_out_of_a_directory_is_refused_by_name(
    tiny_models_dir: Path, data_dir: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    secret.chmod(0o600)
    files = tiny_models_dir / "tiny"
    (files / name).unlink(missing_ok=True)
    (files / name).symlink_to(secret)
    ran = sleb(data_dir, "models", "add", str(files))
    said = " ".join(ran.stderr.split())
    assert (ran.returncode, f"{name} is a link out of the directory" in said) == (1, True), said
    assert "Traceback" not in said
    assert left_behind(data_dir) == []


@pytest.mark.usefixtures("opening_process")
def test_a_model_that_takes_all_memory_is_first_opened_by_another_process(
    tiny_models_dir: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is added is not opened again: its verdict is kept with the models."""
    source = tiny_models_dir / "tiny"
    changes = tokenizers()["of a rare letter"]
    hostile = write_changed(source, tmp_path / "hostile", "tokenizer.json", changes)
    settings = settings_of(data_dir)
    with pytest.raises(ModelNotAdded, match=rf"{hostile}: .* times as long"):
        add_model(str(hostile), settings)
    assert [name for name in left_behind(data_dir) if name != ".opened.json"] == []
    add_model(str(source), settings)
    monkeypatch.setattr("pruning.models.opening._PROCESS", None)
    assert ModelStore(settings.models_dir).load("tiny").model is not None


def test_the_links_of_a_hub_cache_and_within_a_directory_are_followed(
    tiny_models_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--org--tiny"
    snapshot, blobs = cache / "snapshots" / "c0ffee", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted((tiny_models_dir / "tiny").iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "LICENSE").symlink_to("config.json")
    target = add_model(str(snapshot), settings_of(data_dir), name="cached")
    assert ModelStore(data_dir / "models").load("cached").model is not None
    assert not any(file.is_symlink() for file in target.iterdir())


def test_what_others_may_not_read_they_may_not_read_in_the_copy(
    tiny_models_dir: Path, data_dir: Path
) -> None:
    files = tiny_models_dir / "tiny"
    for file in files.iterdir():
        file.chmod(0o666)
    (files / "model.safetensors").chmod(0o640)
    files.chmod(0o750)
    target = add_model(str(files), settings_of(data_dir))
    modes = {file.name: file.stat().st_mode & 0o777 for file in target.iterdir()}
    assert modes.pop("model.safetensors") == modes.pop(ORIGIN_FILE) == 0o640
    assert set(modes.values()) == {0o644}
    assert target.stat().st_mode & 0o777 == 0o750


def test_a_directory_has_no_revision_and_is_not_added_twice(tiny_models_dir: Path) -> None:
    settings = ServeSettings(data_dir=tiny_models_dir.parent)
    path = str(tiny_models_dir / "tiny")
    with pytest.raises(ModelNotAdded, match="remove --revision"):
        add_model(path, settings, name="x", revision="main")
    with pytest.raises(ModelNotAdded, match="already in the models directory"):
        add_model(path, settings, name="x")
    with pytest.raises(ModelNotAdded, match="already exists"):
        add_model(path, settings)


def test_a_full_disk_is_told_before_and_while_files_come(
    tiny_models_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = str(tiny_models_dir / "tiny"), ServeSettings(data_dir=data_dir)
    usage = shutil.disk_usage(tiny_models_dir)._replace(free=99)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage)
        with pytest.raises(ModelNotAdded, match=r"needs \d+ bytes, but only 99 are free"):
            add_model(path, settings)
    monkeypatch.setattr(shutil, "copyfileobj", lambda *_: Path("/dev/full").write_bytes(b"x"))
    with pytest.raises(ModelNotAdded, match="is full"):
        add_model(path, settings)
    assert left_behind(data_dir) == []


def test_what_a_killed_run_left_is_swept(tiny_models_dir: Path, data_dir: Path) -> None:
    left = data_dir / "models" / ".staging" / f"tiny-{'0' * 32}"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    assert ModelStore(data_dir / "models").names() == []
    add_model(str(tiny_models_dir / "tiny"), ServeSettings(data_dir=data_dir))
    assert not left.exists()
    assert ModelStore(data_dir / "models").names() == ["tiny"]
