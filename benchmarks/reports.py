"""What all reports have: the machine and the command in the JSON file, and Markdown beside it."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.bench.machine import machine


def facts(module: str) -> dict[str, Any]:
    """The machine, and the command that runs this module."""
    command = ["python", "-m", f"benchmarks.{module}", *sys.argv[1:]]
    return {"machine": machine(), "command": shlex.join(command)}


def write(report: Mapping[str, Any], out: Path, text: str = "") -> None:
    """Write the JSON file, and beside it the Markdown text if there is one."""
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if text:
        out.with_suffix(".md").write_text(text, encoding="utf-8")
