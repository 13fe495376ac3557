"""``--json`` of every command. The commands are those of the program, so none is left out."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import typer

from app.cli.main import app
from app.config import ServeSettings
from pruning.jobs.store import JobStore
from pruning.models.demo_model import NAME as DEMO_MODEL
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned
from tests.support.bench_options import SMALL
from tests.support.command_line import sleb
from tests.support.job_lives import succeed
from tests.support.serving import serving

TEXT = ["--calibration", "self", "--num-samples", "2", "--seqlen", "12"]
WINDOWS = ["--num-windows", "2"]
ONE_STEP = ["--num-tokens", "1024", "--no-control", "--batch-tokens", "1024"]


def commands(group: typer.core.TyperGroup, name: str = "") -> Iterator[str]:
    """The commands of the program that have ``--json``, as they are typed."""
    for word, command in group.commands.items():
        typed = f"{name} {word}".strip()
        if any("--json" in param.opts for param in command.params):
            yield typed
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, typed)


def program() -> typer.core.TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group


@dataclass(frozen=True)
class Place:
    """A data directory with the model tiny and a checkpoint of it, and an empty folder."""

    data_dir: Path
    out: Path
    checkpoint: str
    job_store: JobStore

    def waiting(self) -> str:
        return self.job_store.create(PruneSpec("tiny", num_remove=1)).id

    def paused(self) -> str:
        job_id = self.waiting()
        self.job_store.pause(job_id)
        return job_id

    def cancelled(self) -> str:
        job_id = self.waiting()
        self.job_store.cancel(job_id)
        return job_id

    def succeeded(self) -> str:
        job_id = self.waiting()
        succeed(self.job_store, job_id)
        return job_id


HERE: Mapping[str, Callable[[Place], list[str]]] = {
    "prune": lambda at: ["tiny", "--num-remove", "1", "--out", str(at.out / "pruned"), *TEXT],
    "heal": lambda at: [at.checkpoint, "--out", str(at.out / "healed"), *ONE_STEP],
    "eval": lambda at: [at.checkpoint, "--tasks", "ppl:prose", "--seqlen", "8", *WINDOWS],
    "advise": lambda _: ["tiny"],
    "frontier": lambda _: ["tiny", "--loads", "stream", "--max-minutes", "0.2"],
    "export": lambda at: ["tiny@-1", str(at.out / "exported")],
    "stability": lambda at: [
        *("tiny", "--num-remove", "1", "--seeds", "0,1", "--out", str(at.out / "stability")),
        *TEXT,
    ],
    "bench": lambda at: [
        *("tiny", "--variants", "@-1", "--scenarios", "generation"),
        *("--out", str(at.out / "bench"), *SMALL),
    ],
    "config": lambda _: [],
    "doctor": lambda _: ["tiny"],
    "demo": lambda _: [
        *("--num-remove", "1", "--port", "0", "--evaluate-s", "0", "--measure-s", "0"),
    ],
    "keys create": lambda _: ["new", "--scope", "generate"],
    "keys rotate": lambda _: ["known"],
    "keys list": lambda _: [],
    "keys quota": lambda _: ["team", "--queued", "3"],
    "keys revoke": lambda _: ["known"],
    "models": lambda _: [],
}
OF_A_SERVICE: Mapping[str, Callable[[Place], list[str]]] = {
    "compare": lambda _: ["tiny", "tiny@-1", "--max-new-tokens", "2", "--repeats", "1"],
    "jobs submit": lambda _: ["tiny", "--num-remove", "1"],
    "jobs heal": lambda at: [at.checkpoint],
    "jobs list": lambda _: [],
    "jobs show": lambda at: [at.succeeded()],
    "jobs watch": lambda at: [at.succeeded()],
    "jobs cancel": lambda at: [at.waiting()],
    "jobs pause": lambda at: [at.waiting()],
    "jobs resume": lambda at: [at.paused()],
    "jobs retry": lambda at: [at.cancelled()],
}
SLOW = {"demo"}  # ``make test`` runs it with --json in tests/e2e


@pytest.fixture
def place(
    tiny_models_dir: Path, tmp_path: Path, job_store: JobStore, request: pytest.FixtureRequest
) -> Place:
    data_dir, out = tiny_models_dir.parent, tmp_path / "out"
    out.mkdir()
    command = request.node.callspec.params["command"]
    if command in SLOW:
        shutil.copytree(tiny_models_dir / "tiny", tiny_models_dir / DEMO_MODEL)
    if command.startswith("keys"):  # with keys, a service would ask for one
        sleb(data_dir, "keys", "create", "known", "--scope", "generate")
    name = publish_pruned(data_dir, 2).name
    return Place(data_dir, out, name, job_store)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if command in SLOW else [])
        for command in commands(program())
    ],
)
def test_a_command_prints_what_a_program_can_read(
    command: str, place: Place, redis_url: str
) -> None:
    assert command in {*HERE, *OF_A_SERVICE}, f"give the arguments of sleb {command} here"
    if command in HERE:
        check(command, place, *HERE[command](place))
        return
    settings = ServeSettings(data_dir=place.data_dir, drain_s=0)
    with serving(settings, redis_url) as (_, url):
        check(command, place, *OF_A_SERVICE[command](place), "--url", url)


def test_advice_is_what_the_rest_api_returns(tiny_models_dir: Path, redis_url: str) -> None:
    data_dir = tiny_models_dir.parent
    publish_pruned(data_dir, 2)
    with serving(ServeSettings(data_dir=data_dir, drain_s=0), redis_url) as (_, url):
        answer = httpx2.get(f"{url}/models/tiny/advice").json()
    assert [depth["verdict"] for depth in answer["depths"]] == ["undecided", *2 * ["exceeded"]]
    assert json.loads(sleb(data_dir, "advise", "tiny", "--json").stdout) == answer


def check(command: str, place: Place, *arguments: str) -> None:
    ran = sleb(place.data_dir, *command.split(), *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines() if command == "jobs watch" else [ran.stdout]
    assert lines
    for line in lines:
        json.loads(line, parse_constant=no_number)


def no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")
