"""A GGUF file is added as a directory with the same model, or not at all."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from huggingface_hub import ModelCard

from app.config import ServeSettings
from app.models.add import ModelNotAdded, add_model
from pruning.checkpoints.card import model_card
from pruning.checkpoints.gguf import FAMILIES, write_gguf
from pruning.models.dequantize import _read_once, inspect_gguf
from pruning.models.lineage import ORIGIN_FILE, lineage_of
from pruning.models.store import ModelStore, NotAModel
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.prune import Resident
from tests.support.command_line import sleb
from tests.support.hostile_models import GGUF_FILES, limited
from tests.support.logits import logits_of, token_ids
from tests.support.mutations import damaged
from tests.support.pruning_runs import RUN
from tests.support.tiny import NUM_BLOCKS
from tests.support.tiny_directory import edit_config, write_tiny_model


def written(directory: Path, family: str) -> Path:
    """The file ``small.gguf`` of a tiny model in ``directory/dense``, with weights in bfloat16."""
    write_tiny_model(directory / "dense", family=family)
    if family == "mistral":  # the later ones
        edit_config(directory / "dense", sliding_window=None)
    dense = load_dense_model(directory / "dense", Resident.MODEL, Resources(), dtype="bfloat16")
    write_gguf(directory / "small.gguf", dense, tuple(range(NUM_BLOCKS)), "small")
    return directory / "small.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_that_was_written(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, family)
    settings = ServeSettings(data_dir=tmp_path / "data")
    path = add_model(str(file), settings)
    assert path.name == "small"
    assert f"{file} are BF16; converting them to bfloat16" in capsys.readouterr().err
    origin = json.loads((path / ORIGIN_FILE).read_text())
    assert origin["conversion"] == "converted from GGUF (BF16) to bfloat16"
    added = ModelStore(settings.models_dir).load("small")
    expected = ModelStore(tmp_path).load("dense", dtype="bfloat16")
    assert torch.equal(logits_of(added.model, token_ids()), logits_of(expected.model, token_ids()))
    text = "7 lazy dogs"
    assert added.tokenizer(text).input_ids == expected.tokenizer(text).input_ids


class DescribedFile(gguf.GGUFWriter):
    """A mixed file of a model that was converted from the hub, as llama.cpp describes it."""

    def add_name(self, name: str) -> None:
        del name
        super().add_name("Tiny Instruct")
        self.add_license("Apache-2.0")
        self.add_languages(["en", "fr"])
        self.add_base_model_count(1)
        self.add_base_model_repo_url(0, "https://huggingface.co/org/Tiny-Instruct")
        self.add_dataset_count(2)
        self.add_dataset_repo_url(0, "https://huggingface.co/datasets/org/texts")
        self.add_dataset_repo_url(1, "https://elsewhere.example/org/texts")

    def add_file_type(self, ftype: int) -> None:
        del ftype
        super().add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)


class UndescribedFile(gguf.GGUFWriter):
    def add_name(self, name: str) -> None:
        """Without one."""

    def add_file_type(self, ftype: int) -> None:
        """Without one."""


def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[gguf.GGUFWriter]) -> Any:
    """The card of what is made of a model that was added from such a file."""
    monkeypatch.setattr("pruning.checkpoints.gguf.GGUFWriter", kind)
    path = add_model(str(written(tmp_path, "llama")), ServeSettings(data_dir=tmp_path / "data"))
    return ModelCard(model_card(RUN, (), lineage_of(path)))


def test_what_the_file_says_of_its_model_is_in_the_cards_of_pruned_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = added(tmp_path, monkeypatch, DescribedFile)
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "org/Tiny-Instruct"
    assert (card.data.language, card.data.datasets) == (["en", "fr"], ["org/texts"])
    assert "(Tiny Instruct), converted from GGUF (Q4_K_M) to bfloat16" in card.text
    assert str(tmp_path) not in card.content


def test_a_file_that_says_nothing_is_named_as_its_parent_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = added(tmp_path, monkeypatch, UndescribedFile)
    assert (card.data.license, card.data.base_model) == (None, RUN.parent)
    assert "Parent: tiny, converted from GGUF (BF16) to bfloat16" in card.text


def test_the_file_is_read_once_for_a_check_and_once_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    class CountedReader(gguf.GGUFReader):
        def __init__(self, path: Path) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr("gguf.gguf_reader.GGUFReader", CountedReader)
    theirs = {**vars(gguf)}
    file = written(tmp_path, "llama")
    add_model(str(file), ServeSettings(data_dir=tmp_path / "data"))
    assert len(read) == 2
    assert vars(gguf) == theirs
    with _read_once():  # in another thread
        assert inspect_gguf(file).kind == "BF16"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.gguf", b"GGUF\x03", "cannot be read as a model"),
        ("model-00001-of-00003.gguf", b"GGUF", "llama-gguf-split --merge"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    settings = ServeSettings(data_dir=tmp_path / "data")
    with pytest.raises(ModelNotAdded, match=says):
        add_model(str(tmp_path / name), settings)
    with pytest.raises(ModelNotAdded, match="remove --revision"):
        add_model(str(tmp_path / name), settings, revision="main")
    assert list(settings.models_dir.glob("[!.]*")) == []


def test_a_disk_without_room_for_plain_weights_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, settings = written(tmp_path, "llama"), ServeSettings(data_dir=tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)._replace(free=99)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(ModelNotAdded, match=r"needs \d+ bytes, but only 99 are free"):
        add_model(str(file), settings)
    assert list(settings.models_dir.glob("[!.]*")) == []


def test_a_file_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    ran = sleb(tmp_path, "models", "add", "none.gguf")
    assert ran.returncode == 1
    assert "a GGUF file" in ran.stderr


_INSPECT = """
import json, sys
from pathlib import Path
from pruning.models.dequantize import inspect_gguf
from pruning.models.safetensors_headers import NotAModel

said = {}
for path in map(Path, sys.argv[1:]):
    try:
        inspect_gguf(path)
        said[path.stem] = "accepted"
    except NotAModel as error:
        said[path.stem] = str(error)
print(json.dumps(said))
"""


def test_no_count_makes_the_reader_go_beyond_the_file(tmp_path: Path) -> None:
    for name, content in GGUF_FILES.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    ran = limited(_INSPECT, *map(str, sorted(tmp_path.iterdir())))
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-2_000:])
    said = json.loads(ran.stdout)
    assert said.keys() == GGUF_FILES.keys()
    assert all("cannot be read as a model" in reason for reason in said.values()), said


def test_no_damage_of_a_header_stops_the_check(tmp_path: Path, num_mutations: int) -> None:
    """Beginning with files that announce more than they hold."""
    content = written(tmp_path, "llama").read_bytes()
    file = tmp_path / "damaged.gguf"
    num_good = 0
    for each in (*GGUF_FILES.values(), *damaged(content, num_mutations, size=20_000)):
        file.write_bytes(each)
        with suppress(NotAModel):
            inspect_gguf(file)
            num_good += 1
    assert 0 < num_good < num_mutations
