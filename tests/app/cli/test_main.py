"""The commands of ``sleb``; in a separate process only where that makes a difference."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from pruning.checkpoints.store import read_manifest
from pruning.models.store import LoadedModel
from pruning.repair.record import Method
from tests.support.api_fixtures import publish_pruned
from tests.support.command_line import Completed, sleb, sleb_process
from tests.support.full_disk import full_disk
from tests.support.processes import environment
from tests.support.pruning_runs import domain_of
from tests.support.repairs import repair_checkpoint
from tests.support.unsupported import quantize_config, write_unsupported


@pytest.fixture
def data_dir(tiny_models_dir: Path) -> Path:
    return tiny_models_dir.parent


def test_help_explains_every_command_and_does_not_wait_for_torch(data_dir: Path) -> None:
    ran = sleb_process(data_dir, "--help")
    assert ran.returncode == 0
    for command in (
        "up",
        "serve",
        "worker",
        "prune",
        "eval",
        "models",
        "demo",
        "jobs",
        "keys",
        "stability",
    ):
        assert re.search(rf"\b{command}\s+[A-Z][a-z]+", ran.stdout), command
    assert "and set the quotas of tenants" in " ".join(ran.stdout.split())
    code = "import sys, app.cli.main; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


LIGHT = """
import sys
from app.cli.main import main

for command in {commands!r}:
    sys.argv = ["sleb", *command.split()]
    try:
        main()
    except SystemExit:
        pass
    loaded = {{"torch", "transformers", "ray"}} & set(sys.modules)
    assert not loaded, (command, loaded)
import app.commands.chat, app.commands.compare, app.commands.domain_table, app.commands.jobs
assert "torch" not in sys.modules
"""


def test_no_command_that_needs_no_tensor_imports_torch(data_dir: Path) -> None:
    """The first list reads the configs with transformers; later ones read the record of that."""
    publish_pruned(data_dir, 2)
    sleb(data_dir, "models")
    url = "--url http://127.0.0.1:9"  # where nothing listens
    commands = [
        "--version", "models", "models --json", "models alias", "models alias prod tiny@-1",
        "config", "keys list", f"jobs list {url}", f"jobs show prn-1 {url}",
        f"jobs watch prn-1 {url}", f"models rm tiny {url}",
        f"jobs submit tiny --sparsity 0.5 {url}", f"jobs heal tiny@prn-1 {url}",
        f"compare tiny tiny@-1 {url}", f"chat tiny {url}", "prune --help", "bench --help",
        "cluster",  # refused, as it names no Redis
    ]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", LIGHT.format(commands=commands)],
        env=environment(data_dir),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "tiny@-1" in ran.stdout


@pytest.mark.parametrize("run", [sleb, pytest.param(sleb_process, marks=pytest.mark.slow)])
def test_prune_writes_a_model_without_any_server(
    data_dir: Path, tmp_path: Path, run: Callable[..., Completed]
) -> None:
    """The slow test runs a process, which starts another one to verify the checkpoint."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    out = tmp_path / "pruned"
    common = ["--calibration", str(text), "--num-samples", "2", "--seqlen", "16", "--json"]
    tasks = ["--tasks", "gen_key,gen_json", "--task-questions", "10"]
    ran = run(data_dir, "prune", "tiny", "--num-remove", "2", "--out", str(out), *common, *tasks)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["path"] == str(out)
    assert len(report["removed_blocks"]) == 2
    asked = [(task.task, task.num_questions) for task in read_manifest(out).quality.tasks]
    assert asked == [("gen_key", 10), ("gen_json", 10)]
    assert "removed block" in ran.stderr
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4


def test_prune_reads_the_questions_of_tasks_before_it_searches(
    data_dir: Path, tmp_path: Path
) -> None:
    questions = tmp_path / "openbookqa.jsonl"
    questions.write_text('{"query": "any"}\n')
    tasks = ["--tasks", "openbookqa", "--out", str(tmp_path / "out")]
    common = ["prune", "tiny", "--num-remove", "1", *tasks]
    ran = sleb(data_dir, *common, "--task-data", str(tmp_path))
    assert (ran.returncode, f"line 1 of {questions}" in ran.stderr) == (1, True), ran.stderr
    ran = sleb(data_dir, *common)
    assert (ran.returncode, "unknown tasks: openbookqa" in ran.stderr) == (2, True), ran.stderr


def test_models_lists_the_catalog(data_dir: Path) -> None:
    assert json.loads(sleb(data_dir, "models", "--json").stdout)[0]["id"] == "tiny"
    listed = sleb(data_dir, "models").stdout
    assert "tiny" in listed
    assert "measured ┃\n" in listed  # no column for errors without an error


def test_models_names_what_is_wrong_with_a_truncated_model(data_dir: Path) -> None:
    """In place of a number of blocks, as if it could be served."""
    weights = data_dir / "models" / "tiny" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    listed = sleb(data_dir, "models")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "its header says" in " ".join(listed.stdout.split())
    [found] = json.loads(sleb(data_dir, "models", "--json").stdout)
    assert "its header says" in found["error"]


def test_models_plot_writes_one_picture_of_the_checkpoints_of_a_model(
    data_dir: Path, tmp_path: Path
) -> None:
    nothing = sleb(data_dir, "models", "plot")
    assert (nothing.returncode, "no checkpoints" in nothing.stderr) == (1, True)
    out = tmp_path / "new" / "models.png"
    for job in ("prn-1", "prn-2"):
        manifest = publish_pruned(data_dir, 2, job)
        file = data_dir / "checkpoints" / manifest.name / "manifest.json"
        known = json.loads(file.read_text())
        domain = asdict(domain_of("prose", ((3.5, 4.5, 5.4), (4.0, 5.1, 6.0))))
        file.write_text(json.dumps({**known, "quality": {**known["quality"], "domains": [domain]}}))
    ran = sleb(data_dir, "models", "plot", "tiny", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) >= {"tiny@prn-1", "tiny@prn-2", str(out)}
    assert out.read_bytes().startswith(b"\x89PNG")
    one = sleb(data_dir, "models", "plot", "tiny@prn-2", "--out", str(out))
    assert "tiny@prn-1" not in one.stdout
    unknown = sleb(data_dir, "models", "plot", "unknown")
    assert (unknown.returncode, "unknown has no checkpoint" in unknown.stderr) == (1, True)


def test_models_names_the_raw_form_of_a_repaired_variant(
    data_dir: Path, tiny_loaded: LoadedModel
) -> None:
    checkpoint = data_dir / "checkpoints" / publish_pruned(data_dir, 2).name
    repair_checkpoint(checkpoint, tiny_loaded.model, [Method.NONE, Method.SCALE])
    listed = json.loads(sleb(data_dir, "models", "--json").stdout)
    repairs = {model["id"]: model["repair"] for model in listed}
    assert repairs["tiny"] is repairs["tiny@-1"] is None
    assert repairs["tiny@-2"] == {
        "method": "scale",
        "bytes": 0,
        "raw": "tiny@-2+raw",
        "is_healed": False,
    }
    [line] = [line for line in sleb(data_dir, "models").stdout.splitlines() if "tiny@-2" in line]
    assert "scale" in line


def test_errors_fit_into_the_terminal_and_are_no_markup(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    place = "/[b]" + "/".join("a place" for _ in range(15))
    ran = sleb(data_dir, "keys", "revoke", place)
    assert (ran.returncode, ran.stderr.startswith("error: ")) == (1, True)
    assert "/[b]a place" in ran.stderr
    assert max(map(len, ran.stderr.splitlines())) <= 100  # columns of these tests


def test_a_taken_place_is_refused_before_any_work(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    ran = sleb(data_dir, "prune", "tiny", "--num-remove", "1", "--out", str(tmp_path / "out"))
    assert ran.returncode == 1
    assert "already exists" in ran.stderr
    assert (tmp_path / "out" / "mine").read_text() == "keep"


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["prune", "none", "--num-remove", "1"], 1, "existing models: tiny"),
        (["prune", "tiny", "--num-remove", "5"], 1, "only 4 can be removed"),
        (["prune", "tiny", "--num-remove", "1", "--calibration", "none.txt"], 2, "none.txt"),
        (["prune", "tiny"], 2, "exactly one"),
        (["prune", "tiny", "--num-remove", "1", "--sparsity", "0.1"], 2, "exactly one"),
        (["prune", "tiny", "--max-perplexity-ratio", "nan"], 2, "above 1"),
        (["prune", "tiny", "--target-speedup", "1"], 2, "above 1"),
        (
            ["prune", "tiny", "--num-remove", "1", "--calibration", "self", "--resident", "stream"],
            2,
            "the default",
        ),
        (["prune", "tiny", "--num-remove", "1", "--search", "fast"], 2, "staged"),
        (["prune", "tiny", "--num-remove", "1", "--metric", "l2"], 2, "one_shot"),
        (["prune", "tiny", "--num-remove", "1", "--calibration", "self=0"], 2, "above 0"),
        (["prune", "tiny", "--num-remove", "1", "--state-budget", "much"], 2, "state_budget"),
        (["prune", "tiny", "--num-remove", "1", "--actors", "-1"], 2, "num_actors"),
        (["prune", "tiny", "--num-remove", "0"], 2, "1 or more"),
        (["prune", "tiny", "--num-remove", "x"], 2, "valid int"),
        (["prune", "tiny", "--num-remove", "1", "--seqlen", "0"], 2, "seqlen"),
        (["prune", "tiny", "--num-remove", "1", "--gate-max-probe-drop", "2"], 2, "below 1"),
        (["prune", "tiny", "--num-remove", "1", "--quantize", "int2"], 2, "int8"),
        (["prune", "tiny", "--num-remove", "1", "--quantize", "int8", "--no-evaluate"], 2, "leave"),
        (["eval", "none"], 1, "no model named 'none'"),
        (["stability", "none", "--num-remove", "1"], 1, "existing models: tiny"),
        (["eval", "tiny", "--tasks", "ppl:"], 1, "list of ppl:TEXT"),
        (["eval", "tiny", "--tasks", "ppl:none.txt", "--seqlen", "16"], 1, "none.txt"),
        (["eval", "tiny", "--dtype", "int8"], 2, "bfloat16"),
        (["stability", "tiny", "--num-remove", "1", "--seeds", "0"], 2, "two seeds"),
        (
            ["stability", "tiny", "--num-remove", "1", "--seeds", "0,x"],
            2,
            "comma-separated integers",
        ),
        (["stability", "tiny", "--num-remove", "1", "--seeds", "0,0"], 2, "give each seed once"),
        (["stability", "tiny", "--num-remove", "5"], 1, "only 4 can be removed"),
        (["serve", "--port", "99999"], 2, "port"),
    ],
)
def test_errors_are_one_message_and_a_code(
    data_dir: Path, tmp_path: Path, arguments: list[str], code: int, word: str
) -> None:
    check_refusal(sleb, data_dir, tmp_path / "out", arguments, code, word)


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["keys", "rotate", "unknown"], 1, "no key named 'unknown'"),
        (["no-such-command"], 2, "No such command"),
    ],
)
def test_a_process_says_and_exits_so_too(
    data_dir: Path, tmp_path: Path, arguments: list[str], code: int, word: str
) -> None:
    check_refusal(sleb_process, data_dir, tmp_path / "out", arguments, code, word)


@pytest.mark.parametrize(
    "command",
    [
        "keys create a --scope jobs",
        "prune tiny --num-remove 1 --num-samples 2 --seqlen 8 --no-evaluate",
        "eval tiny --tasks ppl:prose --num-windows 2 --seqlen 8 --out eval.json",
    ],
)
def test_a_full_disk_is_one_message(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with full_disk():
        ended = sleb(data_dir, *command.split())
    assert ended.returncode == 1
    assert "free space in the data directory" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (data_dir / "keys.json").exists()


def test_the_version_is_that_of_the_package(data_dir: Path) -> None:
    ran = sleb(data_dir, "--version")
    assert (ran.returncode, ran.stdout) == (0, f"sleb-serve {version('sleb-serve')}\n")


def test_the_names_of_options_are_whole_in_a_narrow_terminal(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = sleb(data_dir, "prune", "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80
    for option in ("--gate-max-perplexity-ratio-of", "--max-perplexity-ratio", "--no-evaluate"):
        assert option in shown
    assert "bool" not in shown


@pytest.mark.parametrize("command", ["up", "serve"])
def test_a_busy_port_is_reported_before_anything_starts(data_dir: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = sleb(data_dir, command, "--port", port)
    assert ran.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in ran.stderr
    assert not (data_dir / "valkey").exists()


@pytest.mark.parametrize(
    "command", ["up", "serve", "worker", "prune tiny --num-remove 1 --out out", "eval tiny"]
)
def test_a_device_that_is_not_here_is_one_message(
    data_dir: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DEVICE", "cuda:97")
    ran = sleb(data_dir, *command.split())
    assert ran.returncode == 1
    assert "\nerror: " in f"\n{ran.stderr}"
    assert "set it to auto, cpu or an available GPU" in ran.stderr


@pytest.mark.parametrize("device", ["mps", "hpu", "cuda:x"])
def test_a_device_of_another_kind_is_refused_before_torch_is_imported(
    data_dir: Path, device: str
) -> None:
    code = """
import sys
from app.cli.main import main
for command in ("serve", "worker", "up", "prune tiny --num-remove 1", "heal tiny@1", "eval tiny",
                "export tiny x", "stability tiny --num-remove 1 --out x", "bench tiny", "demo",
                "models"):
    sys.argv[1:] = command.split()
    try:
        main()
    except SystemExit as end:
        print(end.code)
print("torch" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(data_dir), "SLEB_DEVICE": device},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert ran.stdout.split() == [*["2"] * 11, "False"]
    said = f"{device!r} is not supported: set it to auto, cpu, cuda or cuda:NUMBER"
    assert {*ran.stderr.splitlines()} == {f"error: setting device (SLEB_DEVICE): {said}"}


def test_the_settings_of_a_service_that_runs_can_be_printed(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLEB_PORT", port)
            ran = sleb(data_dir, "config", "--json")
    assert (ran.returncode, f'"{port}"' in ran.stdout) == (0, True)


def test_an_invalid_setting_is_one_plain_line(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_PORT", "abc")
    monkeypatch.setenv("SLEB_REDIS_URL", "http://user:secret@there")
    ran = sleb(data_dir, "serve")
    assert ran.returncode == 2
    redis_url, port = ran.stderr.splitlines()
    assert redis_url.startswith("error: setting redis_url (SLEB_REDIS_URL): expected redis://HOST")
    assert port.startswith("setting port (SLEB_PORT): input should be a valid integer")
    assert "secret" not in ran.stderr


def test_settings_that_contradict_each_other_are_named_as_they_are_written(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_TLS_CERT", "none.crt")
    refused = sleb(data_dir, "config").stderr
    assert refused.startswith("error: settings: incomplete TLS settings: SLEB_TLS_CERT and")


def check_refusal(
    run: Callable[..., Completed],
    data_dir: Path,
    out: Path,
    arguments: list[str],
    code: int,
    word: str,
) -> None:
    extra = ["--out", str(out)] if arguments[0] in {"prune", "stability"} else []
    ran = run(data_dir, *arguments, *extra)
    assert ran.returncode == code, ran.stderr
    assert word in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "Value error" not in ran.stderr
    assert not out.exists()


def test_models_that_cannot_be_pruned_are_told_what_can(data_dir: Path, tmp_path: Path) -> None:
    write_unsupported(data_dir / "models" / "encoder", "t5")
    quantize_config(data_dir / "models" / "tiny", "bitsandbytes")
    for model, said in (("encoder", "decoder-only"), ("tiny", "the original unquantized model")):
        ran = sleb(data_dir, "prune", model, "--num-remove", "1", "--out", str(tmp_path / "out"))
        told = " ".join(ran.stderr.split())  # a narrow terminal breaks lines
        assert (ran.returncode, told.count("error:")) == (1, 1)
        assert said in told
        assert "Traceback" not in told
        assert not (tmp_path / "out").exists()
