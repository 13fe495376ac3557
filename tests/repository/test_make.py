"""What ``make`` installs, and with which command. Nothing is installed here."""

import subprocess
from pathlib import Path

from pruning.extras import EXTRAS
from tests.support.pages import ROOT


def planned(target: str, venv: Path, path: Path, *variables: str) -> list[str]:
    """The commands that ``make`` would run; ``path`` has the programs, beside those of Debian."""
    ran = subprocess.run(
        ["make", "--dry-run", target, f"VENV={venv}", *variables],
        cwd=ROOT,
        env={"PATH": f"{path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.splitlines()


def installs(lines: list[str]) -> list[str]:
    return [line for line in lines if " tools.install " in line]


def test_the_demo_installs_no_more_than_it_needs(tmp_path: Path) -> None:
    [demo] = installs(planned("demo", tmp_path / "venv", tmp_path))
    assert demo.endswith("--editable '.[demo]'")
    [everything] = installs(planned("pytest", tmp_path / "venv", tmp_path))
    assert everything.endswith(f"--editable '.[{','.join(sorted([*EXTRAS, 'dev']))}]'")


def test_uv_is_fetched_where_there_is_none(tmp_path: Path) -> None:
    fetched = tmp_path / "build" / "uv"
    without = planned("demo", tmp_path / "venv", tmp_path, f"BUILD={tmp_path / 'build'}")
    [fetch] = [line for line in without if f" --target {fetched} 'uv>=" in line]
    assert without[without.index(fetch) - 1].endswith(": 18 MB.'"), "its size is said before"
    assert f" -m tools.install {fetched}/bin/uv --editable" in installs(without)[0]
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    there = planned("demo", tmp_path / "venv", tmp_path, f"BUILD={tmp_path / 'build'}")
    assert not [line for line in there if " --target " in line]
    assert f" -m tools.install {tmp_path / 'uv'} --editable" in installs(there)[0]


def test_nothing_is_installed_twice(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    everything = planned("setup", tmp_path, tmp_path)
    [stamps] = [line for line in everything if line.startswith("touch ")]
    for stamp in stamps.split()[1:]:  # both: all that the demo needs is in it
        Path(stamp).touch()
    assert installs(planned("setup", tmp_path, tmp_path)) == []
    assert installs(planned("demo", tmp_path, tmp_path)) == []
    (tmp_path / ".with-all").unlink()
    assert installs(planned("demo", tmp_path, tmp_path)) == []
    assert len(installs(planned("setup", tmp_path, tmp_path))) == 1
