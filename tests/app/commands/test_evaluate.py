"""``sleb eval``: names and directories, tables and JSON, and error messages."""

import json
import re
import shutil
from collections.abc import Callable
from math import exp, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.commands.evaluate import InvalidTasks, Tasks, run_evaluation
from app.commands.subject import NotEvaluable
from app.models.measured_qualities import FILE, MeasuredQualities
from app.terminal import json_text
from pruning.checkpoints.store import CheckpointCorrupt, Manifest
from pruning.confidence import reach
from pruning.config import WorkerSettings
from pruning.data.texts import TextUnusable
from pruning.evaluation.generated import GENERATED_TASKS
from pruning.evaluation.json_questions import JsonQuestion
from pruning.evaluation.task_errors import TaskUnusable
from pruning.models.quantize import int8_form, quantized
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import LoadedModel, ModelStore, load
from pruning.repair.record import Method
from pruning.spec.prune import Quantize, Repair
from pruning.spec.tasks import PAPER_TASKS
from tests.support.api_fixtures import publish_pruned
from tests.support.perplexity import TEXT, perplexity_by_hand
from tests.support.repairs import repair_checkpoint
from tests.support.task_files import write_task_files

Run = Callable[..., Any]
PPL = ["--tasks", "ppl:wikitext2,ppl:own.txt", "--seqlen", "16", "--num-windows", "9"]


@pytest.fixture
def data_dir(tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data_dir = tiny_models_dir.parent
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("SLEB_THREADS", "1")
    (data_dir / "texts").mkdir()
    for name in ("wikitext2-test.txt", "own.txt"):
        (data_dir / "texts" / name).write_text(TEXT, encoding="utf-8")
    return data_dir


@pytest.fixture
def published(data_dir: Path) -> Manifest:
    return publish_pruned(data_dir, 2, repair=Repair.AUTO)


def run(*arguments: object) -> Any:
    """The printed JSON. Raises the error of a command that fails."""
    words = ["eval", *map(str, arguments), "--json"]
    result = CliRunner().invoke(command_line, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["evaluations"]


@pytest.mark.slow
def test_every_name_of_a_model_means_its_blocks(data_dir: Path, published: Manifest) -> None:
    checkpoint = data_dir / "checkpoints" / "tiny@prn-1"
    dense = data_dir / "models" / "tiny"
    found = run("tiny", dense, "tiny@-1", "tiny@prn-1-1", "tiny@-2", "tiny@prn-1", checkpoint, *PPL)
    removed = [tuple(each["removed_blocks"]) for each in found]
    whole = published.removed_blocks
    assert removed == [(), (), whole[:1], whole[:1], whole, whole, whole]
    assert [each["num_blocks"] for each in found] == [6, 6, 5, 5, 4, 4, 4]
    losses = [each["perplexities"][1]["loss"] for each in found]
    assert len({round(loss, 9) for loss in losses}) == 3
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]
    assert losses[4:] == pytest.approx([losses[4]] * 3)


@pytest.mark.slow
def test_raw_names_mean_the_blocks_without_their_repair(
    data_dir: Path, published: Manifest, tiny_loaded: LoadedModel
) -> None:
    checkpoint = data_dir / "checkpoints" / published.name
    repair_checkpoint(checkpoint, tiny_loaded.model, [Method.SCALE, Method.RIDGE])
    names = ["tiny@-2", checkpoint, "tiny@-2+raw", "tiny@prn-1+raw", "tiny@-1", "tiny@prn-1-1+raw"]
    dense, *found = run("tiny", *names, *PPL)
    assert [each["model"] for each in (dense, *found)] == ["tiny", *map(str, names)]
    losses = [each["perplexities"][1]["loss"] for each in found]
    assert losses[0] == pytest.approx(losses[1])
    assert losses[2] == losses[3]
    assert len({round(loss, 6) for loss in losses}) == 4


@pytest.mark.usefixtures("few_questions")
def test_by_default_each_domain_is_measured_dense_raw_and_repaired(
    data_dir: Path, published: Manifest, tiny_loaded: LoadedModel
) -> None:
    checkpoint = data_dir / "checkpoints" / published.name
    repair_checkpoint(checkpoint, tiny_loaded.model, [Method.NONE, Method.RIDGE])
    found = run("tiny@-2", "--num-windows", "5")
    assert [each["model"] for each in found] == ["tiny", "tiny@-2+raw", "tiny@-2"]
    for at, domain in enumerate(("prose", "code", "documentation")):
        dense, raw, repaired = (each["perplexities"][at] for each in found)
        assert dense["text"] == f"packaged {domain}, evaluation documents"
        assert dense["seqlen"] == tiny_loaded.model.config.max_position_embeddings
        assert dense["digest"] == raw["digest"] == repaired["digest"]
        assert dense["interval"]["low"] < dense["perplexity"] < dense["interval"]["high"]
        for pruned in (raw, repaired):
            ratio = pruned["ratio"]
            assert ratio["value"] == pytest.approx(pruned["perplexity"] / dense["perplexity"])
            assert ratio["low"] < ratio["value"] < ratio["high"]
        assert raw["loss"] != repaired["loss"]
    assert all(each["probe"] for each in found)


def test_a_raw_form_is_added_once_and_where_there_is_one(
    data_dir: Path, published: Manifest, tiny_loaded: LoadedModel
) -> None:
    checkpoint = data_dir / "checkpoints" / published.name
    repair_checkpoint(checkpoint, tiny_loaded.model, [Method.NONE, Method.RIDGE])
    whole = published.name
    for names, expected in (
        (["tiny@-1"], ["tiny", "tiny@-1"]),
        ([checkpoint], ["tiny", str(checkpoint)]),
        (["tiny@-2", whole], ["tiny", "tiny@-2+raw", "tiny@-2", whole]),
        ([whole, "tiny@-2+raw"], ["tiny", whole, "tiny@-2+raw"]),
    ):
        assert [each["model"] for each in run(*names, *PPL)] == expected
    quantized = run("tiny@-2", *PPL, "--quantize", "int8")
    assert [(each["model"], each["weights"]) for each in quantized] == [
        ("tiny", None),
        ("tiny@-2+raw", None),
        ("tiny@-2", None),
        ("tiny@-2", "int8"),
    ]


def test_perplexity_is_that_of_a_loop(data_dir: Path) -> None:
    (found,) = run("tiny", *PPL[:-2])
    loaded = ModelStore(data_dir / "models").load("tiny")
    of_paper, own = found["perplexities"]
    expected = perplexity_by_hand(loaded.model, loaded.tokenizer, TEXT, 16)
    assert own["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert own["text"] == f"file {data_dir / 'texts' / 'own.txt'}"
    assert of_paper["perplexity"] != own["perplexity"]
    assert own["seqlen"] == 16


@pytest.mark.slow
@pytest.mark.usefixtures("few_questions")
def test_streamed_the_numbers_are_the_same(data_dir: Path, published: Manifest) -> None:
    assert published.removed_blocks
    arguments = ["tiny", "tiny@-2", "--tasks", "probe,ppl:own.txt", "--seqlen", "16"]
    in_memory, streamed = (run(*arguments, "--resident", how) for how in ("model", "stream"))
    for ours, theirs in zip(in_memory, streamed, strict=True):
        assert ours["probe"] == theirs["probe"]
        [own], [other] = ours["perplexities"], theirs["perplexities"]
        assert own["losses"] == pytest.approx(other["losses"])
        assert (own["text"], own["digest"]) == (other["text"], other["digest"])
    with pytest.raises(NotEvaluable, match="--resident model"):
        run("tiny", "--tasks", "piqa", "--resident", "stream")
    assert data_dir.exists()


@pytest.mark.usefixtures("few_questions")
def test_a_pruned_model_is_compared_with_its_parent_on_the_same_windows(
    data_dir: Path, published: Manifest
) -> None:
    assert published.removed_blocks
    checkpoint = data_dir / "checkpoints" / "tiny@prn-1"
    for name in ("tiny@-2", str(checkpoint)):
        dense, pruned = run(name, "--tasks", "ppl:own.txt", "--seqlen", "16")
        assert (dense["model"], pruned["model"]) == ("tiny", name)
        [whole], [cut] = dense["perplexities"], pruned["perplexities"]
        assert whole["ratio"] is None
        gaps = [
            after - before for before, after in zip(whole["losses"], cut["losses"], strict=True)
        ]
        error = stdev(gaps) / sqrt(len(gaps))
        margin = reach(len(gaps) - 1) * error
        assert cut["ratio"] == {
            "value": pytest.approx(exp(fmean(gaps))),
            "low": pytest.approx(exp(fmean(gaps) - margin)),
            "high": pytest.approx(exp(fmean(gaps) + margin)),
        }
        assert cut["interval"]["low"] < cut["perplexity"] < cut["interval"]["high"]
    assert len(run("tiny@-2", "--tasks", "probe")) == 1


def test_a_section_of_the_table_has_one_text_and_fits_into_80_columns(
    data_dir: Path, published: Manifest, tiny_loaded: LoadedModel
) -> None:
    repair_checkpoint(
        data_dir / "checkpoints" / published.name, tiny_loaded.model, [Method.NONE, Method.RIDGE]
    )
    words = ["eval", "tiny@-2", "--tasks", "ppl:own.txt,ppl:wikitext2", "--seqlen", "16"]
    out = data_dir / "report.json"
    result = CliRunner(env={"COLUMNS": "80"}).invoke(
        command_line, [*words, "--out", str(out)], catch_exceptions=False
    )
    found = json.loads(out.read_text())["evaluations"]
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    for at, name in enumerate(("own.txt", "wikitext2")):
        dense, *pruned = (each["perplexities"][at] for each in found)
        text = f"{dense['text']}, {dense['num_windows']} windows of 16 tokens"
        told = f"{name}: {text} (sha256 of the token ids {dense['digest'][:12]})."
        assert "".join(told.split()) in "".join(result.stdout.split())  # wrapped somewhere
        section = lines[lines.index(name) + 1 :]
        assert section[0].split() == ["tiny", *shown(dense["interval"])]
        for line, model, measured in zip(section[1:], found[1:], pruned, strict=False):
            cells = [*shown(measured["interval"]), *shown(measured["ratio"])]
            assert line.split() == [model["model"], *cells]


def shown(interval: dict[str, float]) -> list[str]:
    value, low, high = (f"{interval[name]:,.2f}" for name in ("value", "low", "high"))
    return [value, f"({low}", "to", f"{high})"]


def test_models_with_other_token_ids_of_a_text_have_a_section_of_their_own(
    data_dir: Path, published: Manifest
) -> None:
    other = data_dir / "models" / "other"
    shutil.copytree(data_dir / "models" / published.parent, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    words = ["eval", "tiny", "other", "--tasks", "ppl:upper.txt", "--seqlen", "16"]
    (data_dir / "texts" / "upper.txt").write_text(TEXT.upper(), encoding="utf-8")
    wide = CliRunner(env={"COLUMNS": "300"})
    table = wide.invoke(command_line, words, catch_exceptions=False).stdout
    lines = [line.strip() for line in table.splitlines()]
    first, second = lines.index("upper.txt"), lines.index("upper.txt (2)")
    assert lines[first + 1].startswith("tiny ")
    assert lines[second + 1].startswith("other ")
    assert sum(line.startswith("upper.txt") and "sha256" in line for line in lines) == 2


@pytest.mark.slow
@pytest.mark.parametrize("weights", Quantize)
def test_quantized_models_stand_beside_themselves_and_their_parent_in_front(
    data_dir: Path, published: Manifest, weights: Quantize
) -> None:
    whole_text = PPL[:-2]
    arguments = [*whole_text, "--quantize", weights.value]
    found = run("tiny@-2", *arguments)
    assert [(each["model"], each["weights"]) for each in found] == [
        ("tiny", None),
        ("tiny@-2", None),
        ("tiny@-2", weights.value),
    ]
    dense, pruned, small = (each["perplexities"][1]["perplexity"] for each in found)
    loaded = ModelStore(data_dir / "models").load("tiny")
    each = quantized(load(data_dir / "checkpoints" / published.name).model, weights)
    assert small == pytest.approx(perplexity_by_hand(each, loaded.tokenizer, TEXT, 16), rel=1e-3)
    plain = run("tiny", "tiny@-2", *whole_text)
    assert [dense, pruned] == [each["perplexities"][1]["perplexity"] for each in plain]
    named = run("tiny", "tiny@-2", "tiny@prn-1", *arguments)
    assert [each["weights"] for each in named] == [None, weights.value] * 3
    assert [each["perplexities"][1]["perplexity"] for each in named[2:4]] == [pruned, small]
    with pytest.raises(NotEvaluable, match="--resident model"):
        run("tiny", "--quantize", weights.value, "--resident", "stream")


def test_an_int8_name_is_measured_as_it_is_served(
    data_dir: Path, published: Manifest, tiny_loaded: LoadedModel
) -> None:
    checkpoint = data_dir / "checkpoints" / published.name
    repair_checkpoint(checkpoint, tiny_loaded.model, [Method.NONE, Method.RIDGE])
    found = run("tiny@-2+int8", "tiny+int8", *PPL)
    assert [(each["model"], each["weights"]) for each in found] == [
        ("tiny", None),
        ("tiny@-2+raw+int8", "int8"),
        ("tiny@-2+int8", "int8"),
        ("tiny+int8", "int8"),
    ]
    asked = run("tiny", "tiny@-2", *PPL, "--quantize", "int8")
    losses = {
        (each["model"], each["weights"]): each["perplexities"][1]["loss"]
        for each in (*found, *asked)
    }
    assert len({round(loss, 9) for loss in losses.values()}) == 8, "the head is not exported"
    assert all(each["perplexities"][1]["ratio"] for each in found[1:])
    (whole,) = [each for each in run("tiny+int8", *PPL[:-2]) if each["weights"]]
    served = int8_form(tiny_loaded.model)
    by_hand = perplexity_by_hand(served, tiny_loaded.tokenizer, TEXT, 16)
    assert whole["perplexities"][1]["perplexity"] == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.usefixtures("few_questions")
def test_the_table_says_what_the_json_says(data_dir: Path, published: Manifest) -> None:
    names = ["tiny", f"{published.parent}@-2"]
    words = ["eval", *names, "--tasks", "probe,ppl:own.txt", "--seqlen", "16"]
    out = data_dir / "report.json"
    result = CliRunner(env={"COLUMNS": "200"}).invoke(
        command_line, [*words, "--out", str(out)], catch_exceptions=False
    )
    for found in json.loads(out.read_text())["evaluations"]:
        (perplexity,), probe = found["perplexities"], found["probe"]
        for number in (
            f"{perplexity['perplexity']:,.2f} (",
            perplexity["digest"][:12],
            f"{probe['score']:.4f} ± {probe['standard_error']:.4f}",
            *(f"{kind['chosen']:.4f}" for kind in probe["kinds"]),
        ):
            assert number in result.stdout
        assert " ".join(map(str, found["removed_blocks"])) in result.stdout
    assert "windows of 16 tokens" in result.stdout
    bar = re.compile(r" [━╸╺]+ ")
    said = [line.strip() for line in result.stderr.splitlines() if line and not bar.search(line)]
    each = ["ppl:own.txt", "probe"]
    assert said == ["Looking up tiny, tiny@-2", "Loading tiny", "tiny", *each, "tiny@-2", *each], (
        "it says what it does without a terminal too"
    )


@pytest.mark.slow
@pytest.mark.usefixtures("published")
def test_valid_json_of_a_pruned_model_stands_beside_that_of_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = JsonQuestion("the dog", {}), JsonQuestion("a", {})
    monkeypatch.setattr("app.commands.evaluate.json_questions", lambda: short)
    dense, pruned = run("tiny@-1", "--tasks", "json")
    assert (dense["model"], pruned["model"]) == ("tiny", "tiny@-1")
    for found in (dense["valid_json"], pruned["valid_json"]):
        assert (found["share"], found["num_questions"], found["low"]) == (0, 2, 0)
        assert found["high"] == pytest.approx(0.6576, abs=1e-4)
        assert len(found["digest"]) == 64
    words = ["eval", "tiny@-1", "--tasks", "json"]
    shown = CliRunner().invoke(command_line, words, catch_exceptions=False)
    assert re.search(r"valid JSON +│ +0\.0000 │ +0\.0000", shown.stdout)
    assert re.search(r"95 % interval +│ +0\.00 to 0\.66 │ +0\.00 to 0\.66", shown.stdout)
    assert "valid JSON: share of answers" in shown.stdout
    [streamed] = run("tiny", "--tasks", "json", "--resident", "stream")
    assert streamed["valid_json"] is None


def test_tasks_are_read_from_files_and_compared_with_the_dense_parent(
    data_dir: Path, published: Manifest
) -> None:
    folder = write_task_files(data_dir / "tasks", "arc_easy", "lambada_openai", "openbook_qa")
    names = ["arc_easy", "lambada_openai", "openbookqa"]
    found = run(f"{published.parent}@-2", "--task-data", folder)
    assert [each["model"] for each in found] == ["tiny", "tiny@-2"]
    for each in found:
        assert [task["task"] for task in each["tasks"]] == names
        assert [task["num_samples"] for task in each["tasks"]] == [6, 3, 4]
        assert (each["perplexities"], each["probe"], each["valid_json"]) == ([], None, None)
    given = ("--task-data", folder)
    [limited] = run("tiny", "--tasks", "arc_easy", "--limit", "2", *given)
    assert [task["num_samples"] for task in limited["tasks"]] == [2]
    with pytest.raises(TaskUnusable, match=r"has no file piqa\.jsonl"):
        run("tiny", "--tasks", "arc_easy,piqa", *given)
    both = ["eval", "tiny", "--task-data", str(folder), "--tasks-dir", str(folder)]
    refused = CliRunner().invoke(command_line, both)
    assert refused.exit_code == 2
    assert "not both" in refused.stderr


def test_tasks_beside_the_dense_model_are_remembered_by_the_name_that_stays(
    data_dir: Path, published: Manifest, tiny_loaded: LoadedModel
) -> None:
    repaired = data_dir / "checkpoints" / published.name
    repair_checkpoint(repaired, tiny_loaded.model, [Method.NONE, Method.RIDGE])
    folder = write_task_files(data_dir / "tasks", "arc_easy", "lambada_openai")
    given = ("--task-data", folder, "--limit", 5)
    dense, shallow, deep, rounded = run("tiny@-1", "tiny@-2", "tiny+int8", *given)
    assert dense["task_shares"] is None
    qualities, weights = MeasuredQualities(data_dir), fingerprint(data_dir / "models" / "tiny")
    for name, printed in (("prn-1-1", shallow), ("prn-1", deep), ("", rounded)):
        known = qualities.tasks("tiny", weights, f"tiny@{name}" if name else "tiny+int8")
        assert known is not None
        assert printed["task_shares"] == json.loads(json_text(known))
        for task, of_dense in zip(printed["tasks"], dense["tasks"], strict=True):
            found = known.by_task[task["task"]]
            assert (found.accuracy, found.dense_accuracy) == (task["value"], of_dense["value"])
            assert found.num_questions == task["num_samples"]
        assert [one.chance for one in known.by_task.values()] == [0.25, 0]
        assert known.can_be_closer, "a file has more questions"


def test_generated_tasks_need_no_files_and_are_compared_as_others(
    data_dir: Path, published: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.extras.find_spec", lambda _name: None)
    dense, pruned = run("tiny@-2", "--tasks", "gen_key,gen_brackets", "--limit", 4)
    assert [task["task"] for task in dense["tasks"]] == ["gen_key", "gen_brackets"]
    assert [task["num_samples"] for task in dense["tasks"]] == [4, 4]
    assert [*pruned["task_shares"]["by_task"]] == ["gen_key", "gen_brackets"]
    known = MeasuredQualities(data_dir).tasks(
        "tiny", fingerprint(data_dir / "models" / "tiny"), published.name
    )
    assert known is not None
    assert [*known.by_task] == ["gen_key", "gen_brackets"]


def test_what_is_no_variant_with_its_dense_model_is_not_remembered(
    data_dir: Path, published: Manifest
) -> None:
    folder = write_task_files(data_dir / "tasks", "arc_easy")
    given = ("--task-data", folder, "--limit", 2)
    run("tiny", data_dir / "checkpoints" / published.name, *given, "--quantize", "int8")
    (data_dir / "models" / "tiny").rename(data_dir / "elsewhere")
    [alone] = run(published.name, *given)
    assert alone["task_shares"] is None
    assert not (data_dir / FILE).exists()


def test_tasks_are_told_apart() -> None:
    assert Tasks.parse(["ppl:a.txt", " probe ", "zeroshot", "boolq", "piqa", "ppl:a.txt"]) == Tasks(
        ("a.txt",), has_probe=True, zero_shot=(*PAPER_TASKS, "boolq")
    )
    assert Tasks.parse(["slices", "gen_key"]).generated == GENERATED_TASKS
    assert Tasks.parse(["json"]) == Tasks((), has_probe=False, zero_shot=(), has_json=True)
    for wrong in ([], ["ppl:"], [" "]):
        with pytest.raises(InvalidTasks, match="list of ppl:TEXT"):
            Tasks.parse(wrong)


def test_what_cannot_be_evaluated_is_one_message(data_dir: Path, published: Manifest) -> None:
    with pytest.raises(LookupError, match="no model named 'none'"):
        run("none")
    with pytest.raises(TextUnusable, match=r"none\.txt"):
        run("tiny", "--tasks", "ppl:none.txt", "--seqlen", "16")
    (data_dir / "models" / "tiny").rename(data_dir / "elsewhere")
    with pytest.raises(NotEvaluable, match="not in the models directory"):
        run(f"{published.name}-1")
    assert run(published.name, *PPL)[0]["num_blocks"] == 4
    (data_dir / "checkpoints" / published.name / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointCorrupt):
        run(published.name, *PPL)


@pytest.mark.parametrize(
    ("text", "said"),
    [("wikitext", "did you mean wikitext2?"), ("notes.txt", "available data sets: prose, code")],
)
def test_an_unknown_text_is_refused_before_any_model_is_read(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a model is read before the texts are checked")

    monkeypatch.setattr("app.commands.evaluate.subject_of", read)
    tasks = Tasks.parse(["ppl:prose", f"ppl:{text}"])
    settings = WorkerSettings(data_dir=data_dir)
    with pytest.raises(TextUnusable, match=f"{text}.*{re.escape(said)}"):
        run_evaluation(["tiny"], tasks, settings, as_json=True, out=None)


@pytest.mark.slow  # as lm-eval reads the files of all its tasks
def test_an_unknown_task_is_refused_before_any_model_is_read(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("a model is read before the tasks are checked")

    monkeypatch.setattr("app.commands.evaluate.subject_of", read)
    settings = WorkerSettings(data_dir=data_dir)
    tasks = Tasks.parse(["no_such_task"])
    with pytest.raises(TaskUnusable, match=r"no_such_task.*Other tasks are probe, json"):
        run_evaluation(["tiny"], tasks, settings, as_json=True, out=None)
