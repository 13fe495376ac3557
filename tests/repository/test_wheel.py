"""The wheel in an environment without the sources: all files are in it, and it runs."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from app.web.routes import PAGES
from tests.support.processes import free_port, is_ready, processes_of
from tests.support.story import prune_and_generate
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "pruning")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the Dockerfile copies."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, sources)
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(sources)], check=True)
    [found] = out.glob("sleb_serve-*.whl")
    return found


@pytest.fixture(scope="module")
def sleb(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in an environment that has the wheel, and the dependencies of this one."""
    venv = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    [site_packages] = venv.glob("lib/python3*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    return venv / "bin" / "sleb"


@contextmanager
def up(sleb: Path, data_dir: Path) -> Iterator[httpx2.Client]:
    """``sleb up`` with this data directory."""
    port = free_port()
    log = data_dir / "log"
    with (
        log.open("wb") as to,
        subprocess.Popen(
            [sleb, "up", "--port", str(port)],
            env=environment(data_dir, SLEB_DATA_DIR=str(data_dir), SLEB_THREADS="1"),
            cwd=data_dir,
            stdout=to,
            stderr=to,
        ) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        try:
            wait_until(lambda: is_ready(client), "the API is ready", 200)
            yield client
        finally:
            process.terminate()
            process.wait(100)
    assert "Traceback" not in log.read_text()
    assert processes_of(data_dir) == []


def environment(home: Path, **settings: str) -> dict[str, str]:
    """Without what would lead to the sources."""
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "COLUMNS": "100", **settings}


def said(sleb: Path, *arguments: str) -> str:
    """What the command prints, in a folder without the sources."""
    ran = subprocess.run(
        [sleb, *arguments],
        cwd=sleb.parent,
        env=environment(sleb.parent),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_it_has_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files


def test_its_commands_describe_themselves(sleb: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] in said(sleb, "--version")
    assert "demo" in said(sleb, "--help")
    assert "--keep" in said(sleb, "demo", "--help")
    shown = "import app, pruning; print(app.__file__, pruning.__file__)"
    for place in said(sleb.with_name("python"), "-c", shown).split():
        assert Path(place).is_relative_to(sleb.parents[1])


def test_it_serves_its_pages_and_prunes_on_its_texts(sleb: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "models" / "tiny")
    with up(sleb, tmp_path) as client:
        for page in PAGES:
            answer = client.get(page.path.replace("{job_id}", "prn-1").replace("{result_id}", "1"))
            assert answer.status_code == 200, page
            for asset in re.findall(r'"(/ui/assets/[^"]+)"', answer.text):
                assert client.get(asset).status_code == 200, asset
        prune_and_generate(client)
