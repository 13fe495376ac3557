"""The commands of the guides, run as they stand: one shell a page, against a running service.

A block runs unless its fence says why not, as ```` ```bash no-run: needs Docker ````.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import httpx2
import pytest

from tests.support.api_fixtures import publish_pruned
from tests.support.pages import GUIDES, ROOT, Block, blocks
from tests.support.processes import environment, free_port, is_ready, processes_of
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

MODEL = "smollm2-135m"  # the name in the guides, here of a tiny model
NUM_TOKENS = 4096  # that it takes, as real ones do
TEXTS = ("file.txt", "prose.txt", "code.txt")
RUNS = [page for page in GUIDES if any(its.language == "bash" for its in blocks(page))]
# Each command, and each job, waits for torch, and these have a dozen of them.
SLOW = {"jobs", "operate", "prune", "serve"}
PATIENCE_S = 1400.0
# The shell of a page ends with the first command that fails, and an answer that is an error fails.
_STRICT = """
set -euo pipefail
curl() {
  case " $* " in
    *" -sf "*) command curl "$@" ;;
    *) command curl --fail-with-body --silent --show-error "$@" ;;
  esac
}
"""


def settings_of(data_dir: Path, port: int) -> dict[str, str]:
    """One thread for models too small for two, and no fresh process for each checkpoint."""
    ours = {"SLEB_PORT": str(port), "SLEB_THREADS": "1", "SLEB_VERIFY": "inline"}
    return {**environment(data_dir), **ours}


@contextmanager
def service(data_dir: Path, port: int) -> Iterator[None]:
    """``sleb up``, ready to answer; nothing of it is left behind."""
    settings = settings_of(data_dir, port)
    with (data_dir / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "app", "up"], env=settings, stdout=log, stderr=log
        )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            wait_until(lambda: is_ready(client), "the API is ready", 120)
        yield
    finally:
        up.terminate()
        up.wait(60)
    assert processes_of(data_dir) == []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """One model, one job's checkpoint of six removals, and texts to calibrate and to judge on."""
    data_dir = tmp_path / "data"
    config = write_tiny_model(data_dir / "models" / MODEL, num_blocks=10) / "config.json"
    longer = {**json.loads(config.read_text()), "max_position_embeddings": NUM_TOKENS}
    config.write_text(json.dumps(longer))
    publish_pruned(data_dir, num_remove=6, model=MODEL)
    (data_dir / "texts").mkdir()
    (data_dir / "texts" / "wikitext2-test.txt").write_text(text(3000))
    return data_dir


def text(num_lines: int) -> str:
    return "\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(num_lines))


@pytest.fixture
def checkout(tmp_path: Path, data_dir: Path) -> Path:
    """Where the reader stands: the environment, the files that the guides name."""
    here = tmp_path / "here"
    here.mkdir()
    (here / ".venv").symlink_to(ROOT / ".venv")
    shutil.copytree(data_dir / "models" / MODEL, here / "my-model")
    for name in TEXTS:
        (here / name).write_text(text(3000))
    return here


def script(page: Path, port: int) -> str:
    """Everything of a page that runs, in one shell that ends with the first command that fails."""
    second = free_port()
    lines = [_STRICT]
    for number, block in enumerate(blocks(page), start=1):
        if block.language == "bash" and block.why_not_run is None:
            lines += [f"echo '-- block {number}' >&2", block.code]
    whole = "\n".join(lines)
    return (
        whole.replace("localhost:8000", f"localhost:{port}")
        .replace("localhost:8001", f"localhost:{second}")
        .replace("SLEB_PORT=8001", f"SLEB_PORT={second}")
    )


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in RUNS
    ],
)
def test_its_commands_run(page: Path, checkout: Path, data_dir: Path, tmp_path: Path) -> None:
    port, told = free_port(), tmp_path / "told"
    commands = script(page, port)
    is_served = f"localhost:{port}" in commands
    settings = settings_of(data_dir, port)
    with service(data_dir, port) if is_served else nullcontext(), told.open("w") as output:
        shell = subprocess.Popen(
            ["bash", "-c", commands],
            cwd=checkout,
            env=settings,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = shell.wait(PATIENCE_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # and what it has started, if that is there
            shell.wait()
    assert code == 0, told.read_text()[-6000:]
    assert processes_of(checkout) == []


def test_every_block_of_commands_runs_or_says_why_not() -> None:
    found = [its for page in GUIDES for its in blocks(page)]
    assert not [its for its in found if its.language in {"", "sh", "shell", "console"}]
    of_commands = [its for its in found if its.language == "bash"]
    assert not [its for its in of_commands if its.why_not_run == "" or is_unclear(its)]
    assert sum(its.why_not_run is None for its in of_commands) > len(of_commands) / 2


def is_unclear(block: Block) -> bool:
    """A note is a name for a block that runs, or a reason."""
    return block.why_not_run is None and not (block.note == "" or block.note.isidentifier())
