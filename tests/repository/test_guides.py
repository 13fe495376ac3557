"""The commands of the guides, run unchanged: one shell per page, against a running service.

A block runs unless its fence gives a reason, as ```` ```bash no-run: needs Docker ````.
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
from tests.support.pages import GUIDES, Block, blocks
from tests.support.processes import environment, free_port, is_ready, processes_of
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

MODEL = "smollm2-135m"  # the name in the guides; here a tiny model
NUM_TOKENS = 4096  # maximum length, as of real models
TEXTS = ("file.txt", "prose.txt", "code.txt")
RUNS = [page for page in GUIDES if any(block.language == "bash" for block in blocks(page))]
# These pages have a dozen commands and jobs, each of which imports torch.
SLOW = {"jobs", "keys", "operate", "prune", "serve", "vllm"}
PATIENCE_S = 1400.0
# The shell exits at the first command that fails, including curl with an error status.
_STRICT = """
set -euo pipefail
curl() {
  case " $* " in
    *" -sf"*) command curl "$@" ;;
    *) command curl --fail-with-body --silent --show-error "$@" ;;
  esac
}
"""


def settings_of(data_dir: Path, port: int) -> dict[str, str]:
    """Settings for tiny models: one thread, and no process that verifies checkpoints."""
    ours = {"SLEB_PORT": str(port), "SLEB_THREADS": "1", "SLEB_VERIFY": "inline"}
    return {**environment(data_dir), **ours}


@contextmanager
def service(data_dir: Path, port: int) -> Iterator[None]:
    """Run ``sleb up`` until the API is ready. All processes are stopped at the end."""
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
        up.wait(100)
    assert processes_of(data_dir) == []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a model, a checkpoint of six removals, and texts."""
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
    """The directory of the reader, with the environment and the files that the guides use."""
    here = tmp_path / "here"
    here.mkdir()
    (here / ".venv").symlink_to(sys.prefix)
    shutil.copytree(data_dir / "models" / MODEL, here / "my-model")
    for name in TEXTS:
        (here / name).write_text(text(3000))
    return here


def script(page: Path, port: int) -> str:
    """All blocks of a page that run, as a shell script that exits at the first failure."""
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
                os.killpg(shell.pid, signal.SIGKILL)  # and its child processes
            shell.wait()
    assert code == 0, told.read_text()[-6000:]
    assert processes_of(checkout) == []


def test_every_block_of_commands_runs_or_says_why_not() -> None:
    found = [block for page in GUIDES for block in blocks(page)]
    assert not [block for block in found if block.language in {"", "sh", "shell", "console"}]
    of_commands = [block for block in found if block.language == "bash"]
    assert not [block for block in of_commands if block.why_not_run == "" or is_unclear(block)]
    assert sum(block.why_not_run is None for block in of_commands) > len(of_commands) / 2


def is_unclear(block: Block) -> bool:
    """Whether the note is neither a name of a block nor a reason not to run it."""
    return block.why_not_run is None and not (block.note == "" or block.note.isidentifier())
