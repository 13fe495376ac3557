"""A model of others is opened by a process with limits before this one opens it, and once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pruning.models import opening
from pruning.models.opening import FILE, OpeningProcess, Openings
from pruning.models.store import ModelStore, NotAModel
from pruning.models.tokenizer_bounds import check_tokenizer
from pruning.records import InvalidRecord
from tests.support.hostile_models import TEMPLATES, tokenizers, write_changed
from tests.support.mutations import mutations

GROWS = 2**28  # bytes, of this process
ENDLESS = ("doubles",)


@pytest.fixture
def source(tiny_models_dir: Path) -> Path:
    return tiny_models_dir / "tiny"


@pytest.mark.usefixtures("opening_process")
def test_what_takes_all_memory_or_time_is_refused_and_the_verdict_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "hostile"
    root.mkdir()
    for name, changes in tokenizers().items():
        write_changed(source, root / name.replace(" ", "-"), "tokenizer.json", changes)
    for name in ENDLESS:
        shutil.copytree(source, root / name)
        (root / name / "chat_template.jinja").write_text(TEMPLATES[name])
    shutil.copytree(source, root / "plain")
    before = psutil.Process().memory_info().rss
    refused = refusals(root)
    assert refused.keys() == {path.name for path in root.glob("[!.]*")} - {"plain"}
    assert all("expected" in refused[name.replace(" ", "-")] for name in tokenizers()), refused
    assert all("takes" in refused[name] for name in ENDLESS), refused
    assert psutil.Process().memory_info().rss - before < GROWS
    monkeypatch.setattr(opening, "_PROCESS", None)  # not asked again
    assert refusals(root) == refused


def refusals(root: Path) -> dict[str, str]:
    """Why the models of a store are refused."""
    store, refused = ModelStore(root), {}
    for name in store.names():
        try:
            store.inspect(name)
        except NotAModel as error:
            refused[name] = str(error)
    return refused


@pytest.mark.usefixtures("opening_process")
def test_a_file_that_changes_is_opened_again(source: Path) -> None:
    openings = Openings(source.parent)
    openings.check(source)
    (source / "chat_template.jinja").write_text(TEMPLATES["doubles"])
    for checks in (openings, Openings(source.parent), Openings()):
        with pytest.raises(NotAModel, match="chat template takes"):
            checks.check(source)
    with pytest.raises(NotAModel, match="chat template takes"):
        ModelStore(source.parent).load("tiny")
    (source / "chat_template.jinja").unlink()
    openings.check(source)
    assert len(json.loads((source.parent / FILE).read_text())["opened"]) == 3


def test_a_process_that_has_ended_is_started_again(
    opening_process: OpeningProcess, source: Path
) -> None:
    assert opening_process.refusal(source) == ""
    assert opening_process._process is not None
    opening_process._process.kill()
    opening_process._process.wait()
    assert opening_process.refusal(source) == ""


def test_a_tokenizer_of_all_kinds_of_rules_is_within_bounds(tmp_path: Path) -> None:
    rules = [
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "NFKC"},
    ]
    fields = {"normalizer": {"type": "Sequence", "normalizers": rules}, "padding": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    check_tokenizer(tmp_path)


def test_no_tokenizer_breaks_the_check(source: Path, tmp_path: Path, num_mutations: int) -> None:
    """Beginning with those that would take all memory."""
    fields = json.loads((source / "tokenizer.json").read_text())
    hostile = [json.dumps({**fields, **changes}) for changes in tokenizers().values()]
    num_refused = 0
    for text in (*hostile, *mutations(fields, num_mutations)):
        (tmp_path / "tokenizer.json").write_text(text, errors="surrogatepass")
        try:
            check_tokenizer(tmp_path)
        except InvalidRecord:
            num_refused += 1
    assert num_refused >= len(tokenizers())


def test_without_limits_such_a_tokenizer_ends_the_process(source: Path, tmp_path: Path) -> None:
    """So that it is known why another process opens it."""
    changes = tokenizers()["nested replacements"]
    path = write_changed(source, tmp_path / "hostile", "tokenizer.json", changes)
    for opened, ends in ((source, False), (path, True)):
        command = [sys.executable, "-c", _OPENED, str(source), str(opened)]
        assert (subprocess.run(command, check=False, timeout=240).returncode < 0) == ends


# The first one imports torch, which maps several gigabytes where it is built for GPUs.
_OPENED = """
import sys
from pathlib import Path
from pruning.models.store import load_tokenizer
from pruning.process import limit_memory
load_tokenizer(Path(sys.argv[1]))
limit_memory(2**30)
load_tokenizer(Path(sys.argv[2]))
"""
