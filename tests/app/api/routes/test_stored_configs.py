"""Files of models that somebody else has written: configs, tokenizers, headers of weights.

A broken one is one entry, and ends nothing.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import pytest

from app.config import ServeSettings
from tests.support.hostile_models import CONFIGS
from tests.support.mutations import mutations
from tests.support.quick import slow_but
from tests.support.serving import LocalClient, local_api
from tests.support.tiny import tiny_model
from tests.support.tiny_directory import tiny_tokenizer

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS = "model.safetensors"
LISTS = ("/models", "/v1/models", "/metrics")
BATCH = 25  # models that are listed at once
BODY = {"prompt": "a", "max_new_tokens": 1}
JOB = {"num_remove": 1, "dry_run": True}
NO_ROOM = 507  # says what is missing


@pytest.fixture
def client(data_dir: Path, settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    assert data_dir
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_no_config_breaks_what_others_ask_for(
    client: LocalClient, data_dir: Path, tmp_path: Path, kind: str, num_mutations: int
) -> None:
    """The numbers are shared among three families. Those that take all memory come first."""
    source = write_source(tmp_path, kind)
    config = json.loads((source / CONFIG).read_text())
    hostile = [json.dumps({**config, **changes}) for changes in CONFIGS.values()]
    texts = mutations(config, num_mutations // 3)
    assert ask_all(client, data_dir, source, CONFIG, chain(hostile, texts))


def test_half_a_character_in_a_config_breaks_no_list(
    client: LocalClient, data_dir: Path, tmp_path: Path
) -> None:
    """The reason quotes it, and half a character cannot be sent."""
    source = write_source(tmp_path, "llama")
    config = {**json.loads((source / CONFIG).read_text()), "dtype": "\ud800"}
    assert not ask_all(client, data_dir, source, CONFIG, [json.dumps(config)])


def test_a_model_that_computes_no_token_says_so(
    client: LocalClient, data_dir: Path, tmp_path: Path
) -> None:
    source = write_source(tmp_path, "gpt2")
    config = {**json.loads((source / CONFIG).read_text()), "embd_pdrop": float("nan")}
    assert not ask_all(client, data_dir, source, CONFIG, [json.dumps(config)])
    shutil.copytree(source, data_dir / "models" / "nan")
    (data_dir / "models" / "nan" / CONFIG).write_text(json.dumps(config))
    refused = client.post("/generate", json={**BODY, "model": "nan"})
    assert refused.status_code == 422
    assert "dropout probability has to be between 0 and 1" in refused.json()["detail"]


@pytest.mark.parametrize("eos", [float("inf"), "</s>", [[1]], {}])
def test_an_end_of_text_that_is_no_token_is_refused(
    client: LocalClient, data_dir: Path, tmp_path: Path, eos: object
) -> None:
    shutil.copytree(write_source(tmp_path, "llama"), data_dir / "models" / "endless")
    file = data_dir / "models" / "endless" / GENERATION
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": eos}))
    refused = client.post("/generate", json={**BODY, "model": "endless"})
    assert refused.status_code == 422
    assert "expected a token id" in refused.json()["detail"]


@pytest.mark.parametrize(
    "name", slow_but(("tokenizer.json", "tokenizer_config.json", GENERATION), "tokenizer.json")
)
def test_no_file_beside_a_config_breaks_what_others_ask_for(
    client: LocalClient, data_dir: Path, tmp_path: Path, name: str, num_mutations: int
) -> None:
    source = write_source(tmp_path, "llama")
    record = json.loads((source / name).read_text())
    texts = mutations(record, max(30, num_mutations // 10))
    assert ask_all(client, data_dir, source, name, texts)


def test_no_header_of_weights_breaks_what_others_ask_for(
    client: LocalClient, data_dir: Path, tmp_path: Path, num_mutations: int
) -> None:
    source = write_source(tmp_path, "llama")
    content = (source / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    changed = mutations(header, max(30, num_mutations // 10))
    heads = (text.encode(errors="surrogatepass") for text in changed)
    files = (len(head).to_bytes(8, "little") + head + rest for head in heads)
    ask_all(client, data_dir, source, WEIGHTS, (each.decode("latin-1") for each in files))


def write_source(folder: Path, kind: str) -> Path:
    source = folder / "source"
    tiny_model(kind).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    return source


def ask_all(
    client: LocalClient, data_dir: Path, source: Path, file: str, texts: Iterable[str]
) -> int:
    """How many of the models have answered that have one of these texts as that file."""
    named = ((f"m{number}", text) for number, text in enumerate(texts))
    models = data_dir / "models"
    return sum(ask(client, source, models, file, dict(some)) for some in batched(named))


def batched(named: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    left = iter(named)
    while some := list(islice(left, BATCH)):
        yield some


def ask(
    client: LocalClient, source: Path, models: Path, file: str, texts: Mapping[str, str]
) -> int:
    encoding = "latin-1" if file == WEIGHTS else "utf-8"
    for name, text in texts.items():
        (models / name).mkdir()
        for each in source.iterdir():
            if each.name != file:
                os.link(each, models / name / each.name)
        (models / name / file).write_bytes(text.encode(encoding, errors="surrogatepass"))
    for path in LISTS:
        found = client.get(path)
        assert found.status_code == 200, (path, list(texts.values()))
    assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200
    num_loaded = sum(own_routes(client, name, text) for name, text in texts.items())
    assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200
    for name in texts:
        shutil.rmtree(models / name)
    return num_loaded


def own_routes(client: LocalClient, name: str, text: str) -> bool:
    """Whether the model answers. If not, the answer says why."""
    answers = [
        client.get(f"/models/{name}"),
        client.post("/prune-jobs", json={**JOB, "model": name}),
        client.post("/generate", json={**BODY, "model": name}),
        client.post(f"/models/{name}/unload"),
    ]
    refused = [each for each in answers if each.status_code >= 500 and each.status_code != NO_ROOM]
    # a model may compute what no token can be chosen from, which ends its own request
    refused = [each for each in refused if "generation-failed" not in each.text]
    assert not refused, (text[:2_000], [each.text for each in refused])
    return answers[2].status_code == 200
