"""``python -m tools.docs.demo``: quote the answer and the table of the demo in README.md.

They are those of one run of the demo, which is kept in a file beside this one. ``--run`` runs the
demo first, in a data directory of its own, and replaces the file.
"""

import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from app.bench.result import machine
from app.commands.demo_report import ModelFigures, print_table
from pruning.config import Settings, child_environment
from pruning.evaluation.frontier import FrontierVerdict, judge
from pruning.evaluation.limits import Limits
from pruning.evaluation.points import DENSE_RATIO, Load, Point
from pruning.evaluation.quality import Interval
from pruning.models.demo_model import NAME, ensure_demo_model

TARGET = Path(__file__).parents[2] / "README.md"
RECORD = Path(__file__).with_name("demo.json")
_WIDTH = 118  # of a line of README.md
_COLUMNS = 80  # of the terminal
_IDLE = 0.25  # of the load average, for each core
_JOB = ("pruned_model", "removed_blocks")  # what is kept of the job
_PART = "<!-- generated: {name} -->\n\n{text}\n\n<!-- end: {name} -->"


def record() -> dict[str, Any]:
    """The run that README.md quotes: ``machine`` before it, and the ``report`` of the demo."""
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def page(text: str, found: Mapping[str, Any]) -> str:
    """The page with the quoted parts as this run has printed them. Raises ``ValueError``."""
    parts = {
        "answer of the demo": answer(found["report"]),
        "machine of the demo": _of_machine(found["machine"]),
        "table of the demo": f"```text\n{table(found['report'])}```",
    }
    for name, content in parts.items():
        begin, end = _PART.format(name=name, text="\0").split("\0")
        part = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        made = _PART.format(name=name, text=content)
        text, count = part.subn(lambda _: made, text)  # noqa: B023 - called at once
        if count != 1:
            raise ValueError(f"{TARGET} has {count} parts for the {name}, expected 1")
    return text


def answer(report: Mapping[str, Any]) -> str:
    """The advice in words, as a quotation."""
    sentence = advice(report).sentence
    return textwrap.fill(
        sentence, _WIDTH, initial_indent="> ", subsequent_indent="> ", break_on_hyphens=False
    )


def advice(report: Mapping[str, Any]) -> FrontierVerdict:
    """What today's rules and words make of the numbers of the run."""
    given = report["advice"]
    loads = [Load(load["name"], load["words"]) for load in given["loads"]]
    points = [_point(depth, loads[0].name) for depth in given["depths"]]
    timed = {load for point in points for load in point.speeds}
    at_one = {load: Interval(1.0, 1.0, 1.0) for load in timed}
    dense = Point(given["model"], ratios=DENSE_RATIO, speeds=at_one)
    return judge(given["model"], [dense, *points], loads, Limits(**given["limits"]))


def _point(depth: Mapping[str, Any], load: str) -> Point:
    is_predicted = load in depth["speeds"] and not depth["is_measured"]
    same = {"name", "num_removed", "is_int8", "is_healed", "num_blocks", "parameters"}
    return Point(
        **{name: depth[name] for name in same},
        speeds={name: Interval(**speed) for name, speed in depth["speeds"].items()},
        predicted=(load,) if is_predicted else (),
        ratios={domain: Interval(**ratio) for domain, ratio in depth["ratios"].items()},
    )


def table(report: Mapping[str, Any]) -> str:
    """What the demo prints in a terminal of 80 columns, without the texts of the models."""
    names = [field.name for field in fields(ModelFigures)]
    models = [ModelFigures(**{name: side[name] for name in names}) for side in report["models"]]
    to = StringIO()
    to_page = Console(file=to, width=_COLUMNS, highlight=False, color_system=None)
    print_table(models, report["advice"], to_page)
    return "".join(f"{line.rstrip()}\n" for line in to.getvalue().splitlines())


def _of_machine(found: Mapping[str, Any]) -> str:
    cores, load = found["cores"], found["load_average"][0]
    was = "otherwise idle" if load <= _IDLE * cores else "busy with other work"
    return textwrap.fill(
        f"This output is from one run on {cores} CPU cores ({found['cpu']}) that were {was}: the "
        f"load average before the run was {load:.2f}.",
        _WIDTH,
    )


def run() -> dict[str, Any]:
    """Run the demo, with the model of the ordinary data directory."""
    model = ensure_demo_model(Settings().models_dir)
    before = machine()
    with TemporaryDirectory() as directory:
        (Path(directory) / "models").mkdir()
        (Path(directory) / "models" / NAME).symlink_to(model)
        environment = child_environment(Settings(data_dir=Path(directory)))
        command = [sys.executable, "-m", "app", "demo", "--json", "--port", "0"]
        ran = subprocess.run(  # noqa: S603 - this program
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    report = json.loads(ran.stdout)
    report["job"] = {name: report["job"][name] for name in _JOB}
    return {"machine": before, "report": report}


def main(*, is_run: bool) -> None:
    if is_run:
        RECORD.write_text(json.dumps(run(), indent=1) + "\n", encoding="utf-8")
    TARGET.write_text(page(TARGET.read_text(encoding="utf-8"), record()), encoding="utf-8")


if __name__ == "__main__":
    main(is_run=sys.argv[1:] == ["--run"])
