"""The metadata of the package as an installer reads it, and the changelog."""

import email
import os
import re
import tomllib
from email.message import Message
from importlib.resources import files
from pathlib import Path

import pytest
from setuptools import build_meta

from tests.support.pages import ROOT


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    """What the build writes, without building."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("metadata")
    for name in ("pyproject.toml", "README.md"):
        (sources / name).write_bytes((ROOT / name).read_bytes())
    before = Path.cwd()
    os.chdir(sources)
    try:
        directory = build_meta.prepare_metadata_for_build_wheel(str(out))
    finally:
        os.chdir(before)
    return email.message_from_string((out / directory / "METADATA").read_text(encoding="utf-8"))


def test_it_says_what_it_is_and_where_it_runs(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    assert classifiers == sorted(classifiers)
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux"} < {*classifiers}
    least = metadata["Requires-Python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {least}" in classifiers
    assert "pruning" in metadata["Keywords"].split(",")


def test_its_urls_are_pages_that_the_readme_names(metadata: Message) -> None:
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert urls
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [url for url in urls.values() if url not in readme] == []


@pytest.mark.parametrize("package", ["app", "pruning"])
def test_type_checkers_read_the_annotations_of_both_packages(package: str) -> None:
    assert (files(package) / "py.typed").is_file()
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in data["package-data"]["*"]  # so that the wheel has it


def test_the_changelog_begins_with_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    [first, *releases] = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}", one) for one in releases)
    unreleased = text.partition("## Unreleased")[2].partition("\n## ")[0]
    assert re.search(r"^- \S", unreleased, re.MULTILINE)


def test_the_missing_license_is_said_in_one_place(metadata: Message) -> None:
    said = [page for page in ROOT.glob("*.md") if "no license yet" in page.read_text()]
    assert [page.name for page in said] == ["README.md"]
    assert metadata["License-Expression"] is None
