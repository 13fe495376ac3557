"""Numbers and files that would take all memory are refused before a library reads them."""

import json
from pathlib import Path

import pytest

from pruning.models.config_bounds import check_config
from pruning.models.store import NotAModel, parse_config
from pruning.records import InvalidRecord
from tests.support.hostile_models import CONFIGS, limited, write_changed

_ALL = """
import json, sys
from pathlib import Path
from pruning.models.store import NotAModel, parse_config

said = {}
for path in map(Path, sys.argv[1:]):
    try:
        parse_config(path)
        said[path.name] = "accepted"
    except NotAModel as error:
        said[path.name] = str(error)
print(json.dumps({"said": said, "read": "transformers" in sys.modules}))
"""


def test_no_library_sees_a_config_that_would_take_all_memory(
    tiny_models_dir: Path, tmp_path: Path
) -> None:
    source = tiny_models_dir / "tiny"
    paths = [
        write_changed(source, tmp_path / name, "config.json", changes)
        for name, changes in CONFIGS.items()
    ]
    padded = write_changed(source, tmp_path / "long file", "config.json", {"x": "a" * 2**22})
    beside = write_changed(source, tmp_path / "long", "generation_config.json", {"x": "a" * 2**22})
    ran = limited(_ALL, *map(str, (*paths, padded, beside)))
    assert ran.returncode == 0, ran.stderr[-2_000:]
    found = json.loads(ran.stdout)
    for name in CONFIGS:
        assert "expected" in found["said"][name], name
    assert "more than the limit of" in found["said"]["long file"]
    assert "more than the limit of" in found["said"]["long"]
    assert not found["read"]


@pytest.mark.parametrize("text", ["[" * 200_000, "null", "[]", '{"num_labels": NaN}'])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidRecord):
        check_config(tmp_path / "config.json")
    with pytest.raises(NotAModel, match=r"cannot read .*config\.json"):
        parse_config(tmp_path)


def test_a_published_config_is_within_all_bounds(tmp_path: Path) -> None:
    """With its special tokens beyond the vocabulary, as published models have them."""
    config = {
        "model_type": "starcoder2",
        "bos_token_id": 50_256,
        "eos_token_id": [50_256, 1],
        "hidden_size": 3_072,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 10_485_760,
        "num_hidden_layers": 126,
        "num_experts": 512,
        "pad_token_id": -1,
        "vocab_size": 49_152,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_config(tmp_path / "config.json")
