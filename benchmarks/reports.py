"""What benchmarks have in common: the model, and reports with the machine and the command."""

import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import typer

from app.bench.result import machine
from app.settings import check_variables
from pruning.config import Settings
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.store import ModelStore

_Name = TypeVar("_Name", bound=str)


def facts(module: str) -> dict[str, Any]:
    """The machine, and the command that runs this module."""
    command = ["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]
    return {"machine": machine(), "command": shlex.join(command)}


def write(report: Mapping[str, Any], out: Path, text: str = "") -> None:
    """Write the JSON file, and beside it the Markdown text if there is one."""
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if text:
        out.with_suffix(".md").write_text(text, encoding="utf-8")


def named(text: str, known: Iterable[_Name]) -> list[_Name]:
    """Those of the known names that a text has, with commas in between, in the order of the known.

    Raises ``typer.BadParameter`` for another name.
    """
    known, names = [*known], {name for name in text.split(",") if name}
    if unknown := names - {*known}:
        raise typer.BadParameter(f"unknown {sorted(unknown)}; expected some of {', '.join(known)}")
    return [name for name in known if name in names]


def model_store(name: str) -> ModelStore:
    """The store of the data directory, which has the demo model if ``name`` is that.

    Raises ``UnknownSetting`` for a variable that is not a setting.
    """
    check_variables()
    settings = Settings()
    if name == NAME:
        ensure_demo_model(settings.models_dir)
    return ModelStore(settings.models_dir, allow_paths=True)
