"""README and guides against the code: requests, tables and links.

These tests are fast. `test_guides.py` runs all commands of the guides.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import redis
import torch
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.config import ServeSettings
from app.main import create_app
from pruning.spec.calibration import CalibrationMix
from pruning.spec.prune import Metric, PruneSpec, Resident, Search
from pruning.worker.metrics import WorkerMetrics
from tests.support.api_fixtures import publish_pruned
from tests.support.pages import GUIDES, README, ROOT, blocks, commands, prose
from tests.support.serving import LocalClient
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

SERVE, JOBS, PRUNE = (
    ROOT / "docs" / "guides" / f"{name}.md" for name in ("serve", "jobs", "prune")
)
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")), *GUIDES)
MODEL = "smollm2-135m"  # the name in the pages; here a tiny model
CURL_LINES = re.findall(
    r"^curl .*$", commands(README, JOBS, SERVE).replace("\\\n", " "), re.MULTILINE
)
CODE = "\n".join([commands(*PAGES), *re.findall(r"`([^`\n]+)`", prose(*PAGES))])


@pytest.fixture
def client(tmp_path: Path, redis_url: str, redis_client: redis.Redis) -> Iterator[TestClient]:
    """The API in the state after ``make demo``: a model, and a job that removed six blocks."""
    redis_client.ping()
    write_tiny_model(tmp_path / "models" / MODEL, num_blocks=8)
    publish_pruned(tmp_path, num_remove=6, model=MODEL)
    app = create_app(ServeSettings(data_dir=tmp_path, drain_s=0), redis_url=redis_url)
    with LocalClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the API is ready")
        yield client


def request_of(line: str) -> dict[str, Any]:
    """Arguments of the test client for the request of a curl command."""
    words = iter(shlex.split(line, comments=True)[1:])
    request: dict[str, Any] = {"method": "GET", "headers": {}}
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            request["headers"][name] = value
        elif word == "-d":
            method = "POST" if request["method"] == "GET" else request["method"]
            request |= {"method": method, "content": next(words)}
        elif word == "-X":
            request["method"] = next(words)
        elif word == "-N":  # no buffering
            pass
        else:
            assert word.startswith("http://localhost:8000/"), f"this test knows no {word!r}"
            request["url"] = word
    return request


def test_the_list_of_targets_fits_a_terminal_of_80_columns() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make image-test" in listed.stdout
    assert [line for line in listed.stdout.splitlines() if len(line) > 80] == []


def test_every_curl_line_works_in_the_order_of_the_pages(client: TestClient) -> None:
    answers = []
    job_id = ""
    for line in CURL_LINES:
        response = client.request(**request_of(line.replace("$JOB", job_id)))
        assert response.is_success, f"{line}: {response.text}"
        if response.status_code == 202:
            job_id = response.json()["id"]
        if response.content and response.headers["content-type"] == "application/json":
            answers.append(response.json())
    generated = [answer for answer in answers if answer.get("object") == "generation"]
    variants = ["dense", "pruned"]  # of the README, then of the guide
    assert [answer["variant"] for answer in generated] == [*variants, *variants, "pruned", "pruned"]
    assert [len(answer["outputs"]) for answer in generated] == [1, 1, 1, 1, 2, 1]
    statuses = [answer["status"] for answer in answers if answer.get("object") == "prune_job"]
    assert statuses[-1] == "cancelled"
    assert "text_completion" in {answer.get("object") for answer in answers}


def test_the_example_of_the_openai_client_works(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = [block.code for block in blocks(SERVE) if "import OpenAI" in block.code]
    monkeypatch.setattr("openai.OpenAI", partial(openai.OpenAI, http_client=client))
    exec(example, {})  # noqa: S102 - code of this project
    assert capsys.readouterr().out


def test_every_metric_that_a_guide_names_is_there(client: TestClient) -> None:
    of_a_worker = generate_latest(WorkerMetrics("worker", lease_s=1).registry).decode()
    found = client.get("/metrics").text + of_a_worker
    metrics = set(re.findall(r"`(sleb_[a-z_]+)`", prose(README, *GUIDES)))
    if not torch.cuda.is_initialized():
        metrics = {metric for metric in metrics if not metric.startswith("sleb_gpu_")}
    assert metrics
    assert not {metric for metric in metrics if f"# TYPE {metric} " not in found}


def test_the_readme_begins_with_clone_demo_and_page() -> None:
    first = next(iter(blocks(README)))
    words = [line.partition("#") for line in first.code.splitlines()]
    assert [code.split()[:2] for code, _, _ in words] == [
        ["git", "clone"],
        ["make", "demo"],
        ["make", "up"],
        [".venv/bin/sleb", "advise"],
    ]
    assert "http://localhost:8000/ui" in words[2][2]
    lines = README.read_text(encoding="utf-8").splitlines()
    assert lines.index("```sh no-run: takes minutes") < 15


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", CODE, re.MULTILINE))
    assert {"demo", "test", "up"} <= named <= targets


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the lines name, in the working directory."""
    for name in ("file.txt", "prose.txt", "code.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("texts")
def test_every_prune_line_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[PruneSpec] = []
    monkeypatch.setattr("app.commands.prune.run_prune", lambda spec, *_, **__: specs.append(spec))
    lines = re.findall(r"^\.venv/bin/sleb (prune .*)$", commands(README, PRUNE), re.MULTILINE)
    for line in lines:
        result = CliRunner().invoke(command_line, shlex.split(line, comments=True))
        assert result.exit_code == 0, f"{line}: {result.output}{result.exception}"
    assert len(specs) == len(lines) >= 6
    assert {spec.search for spec in specs} == set(Search)
    assert {spec.resident for spec in specs} == set(Resident)
    assert {spec.metric for spec in specs} >= {Metric.COSINE, Metric.SLEB}
    assert any(isinstance(spec.calibration, CalibrationMix) for spec in specs)


@pytest.mark.usefixtures("texts")
def test_the_stability_line_says_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[set[str], list[int]]] = []
    monkeypatch.setattr(
        "app.commands.stability.run_stability",
        lambda _spec, texts, seeds, *_, **__: asked.append((set(texts), seeds)),
    )
    [line] = re.findall(r"^\.venv/bin/sleb (stability .*)$", commands(PRUNE), re.MULTILINE)
    result = CliRunner().invoke(command_line, shlex.split(line))
    assert result.exit_code == 0, f"{result.output}{result.exception}"
    assert asked == [({"prose", "code"}, [0, 1, 2, 3])]


def test_every_command_is_named_and_no_other() -> None:
    commands = {
        command.name or command.callback.__name__
        for command in command_line.registered_commands
        if command.callback
    } | {group.name for group in command_line.registered_groups}
    assert set(re.findall(r"(?:^|/)sleb ([a-z]+)", CODE, re.MULTILINE)) == commands


def test_every_link_leads_somewhere() -> None:
    """Every link names an existing file, and an existing heading if it has a fragment."""
    dead, num_links = [], 0
    for page in PAGES:
        for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose(page)):
            target = (page.parent / file).resolve() if file else page
            num_links += 1
            if not target.exists() or (anchor and anchor not in anchors(target)):
                dead.append(f"{page.name}: {file}#{anchor}")
    assert not dead
    assert num_links > 50


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub creates them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
