"""The file that declares external models: valid and invalid declarations."""

from pathlib import Path

import pytest

from app.config import ServeSettings
from app.main import create_app
from app.models.external import InvalidExternalModels, read_external_models
from tests.support.pages import GUIDES, blocks

WHOLE = """
[[models]]
name = "vllm-pruned"
backend = "openai"
base_url = "https://gpu-box:8000/v1/"
model = "DIR"
api_key_file = "keys/vllm"
parent = "my-model"
removed_blocks = [10, 4]
num_blocks = 22
max_num_seqs = 8
max_waiting = 0
connect_s = 1
silence_s = 30.5
takes_cache_salt = true

[[models]]
name = "vllm-dense"
base_url = "http://gpu-box:8001/v1"
"""


def read(tmp_path: Path, text: str) -> tuple[object, ...]:
    file = tmp_path / "external.toml"
    file.write_text(text)
    return read_external_models(file)


def test_all_of_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "vllm").write_text("abc\n")
    (tmp_path / "external.toml").write_text(WHOLE)
    pruned, dense = read_external_models(tmp_path / "external.toml")
    assert (pruned.name, pruned.model) == ("vllm-pruned", "DIR")
    assert pruned.base_url == "https://gpu-box:8000/v1"
    assert pruned.api_key == "abc"
    assert "abc" not in repr(pruned)
    assert (pruned.parent, pruned.removed_blocks, pruned.num_removed) == ("my-model", (10, 4), 2)
    assert (pruned.num_blocks, pruned.max_num_seqs, pruned.max_waiting) == (22, 8, 0)
    assert (pruned.connect_s, pruned.silence_s) == (1, 30.5)
    assert (pruned.takes_cache_salt, dense.takes_cache_salt) == (True, False)
    assert (dense.model, dense.api_key, dense.parent) == ("vllm-dense", None, None)
    assert (dense.num_removed, dense.num_blocks) == (0, None)


ONE = '[[models]]\nname = "a"\nbase_url = "http://host/v1"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[models", "Expected ']]'"),
        ("[models]\na = 1", "models"),
        ("[[model]]", "model"),
        ('[[models]]\nname = "a"', "base_url"),
        (ONE + 'api_key = "sk-1"', "api_key"),
        (ONE + ONE, "duplicate models: a"),
        ('[[models]]\nname = "a/b"\nbase_url = "http://host"', "name"),
        ('[[models]]\nname = "a"\nbase_url = "host:8000"', "expected http:// or https://"),
        ('[[models]]\nname = "a"\nbase_url = "ftp://host"', "expected http:// or https://"),
        ('[[models]]\nname = "a"\nbase_url = "http://u:sk-1@host"', "no credentials"),
        ('[[models]]\nname = "a"\nbase_url = "http://host?key=sk-1"', "no credentials"),
        ('[[models]]\nname = "a"\nbase_url = "http://host:99999999"', "invalid port 99999999"),
        ('[[models]]\nname = "a"\nbase_url = "http://[::1"', "not a URL"),
        (ONE + 'backend = "grpc"', "backend"),
        (ONE + 'parent = "b"', "parent requires"),
        (ONE + "removed_blocks = [1]", "parent requires"),
        (ONE + 'parent = "b"\nremoved_blocks = [1, 1]', "twice"),
        (ONE + 'parent = "b"\nremoved_blocks = [1, 2]\nnum_removed = 3', "num_removed is 3"),
        (ONE + "max_num_seqs = 0", "max_num_seqs"),
        (ONE + "silence_s = 0", "silence_s"),
        (ONE + 'api_key_file = "none"', "cannot read the api_key_file"),
        (ONE + 'api_key_file = "empty"', "one line of printable"),
        (ONE + 'api_key_file = "two"', "one line of printable"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "two").write_text("sk-1\nsk-2\n")
    with pytest.raises(InvalidExternalModels) as error:
        read(tmp_path, text)
    assert told in str(error.value)
    assert "sk-" not in str(error.value)


def test_the_setting_names_another_file_which_has_to_be_there(tmp_path: Path) -> None:
    assert ServeSettings(data_dir=tmp_path).external_models_file is None
    usual, other = tmp_path / "external.toml", tmp_path / "other.toml"
    usual.write_text("")
    assert ServeSettings(data_dir=tmp_path).external_models_file == usual
    assert read_external_models(usual) == read_external_models(None) == ()
    settings = ServeSettings(data_dir=tmp_path, external_models=other)
    assert settings.external_models_file == other
    with pytest.raises(InvalidExternalModels, match=r"other\.toml"):
        read_external_models(other)


def test_a_service_with_a_file_that_is_wrong_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "external.toml").write_text("[[models")
    with pytest.raises(InvalidExternalModels):
        create_app(ServeSettings(data_dir=tmp_path), redis_url="unix:///none")


def test_the_example_of_the_guide_can_be_used(tmp_path: Path) -> None:
    (example,) = [each.code for each in blocks(*GUIDES) if each.language == "toml"]
    file = tmp_path / "external.toml"
    file.write_text(example)
    dense, pruned = read_external_models(file)
    assert (dense.num_removed, pruned.parent, pruned.num_removed) == (0, dense.name, 6)
    assert (dense.max_num_seqs, dense.max_waiting) == (pruned.max_num_seqs, pruned.max_waiting)
    assert (dense.connect_s, dense.silence_s) == (pruned.connect_s, pruned.silence_s)
