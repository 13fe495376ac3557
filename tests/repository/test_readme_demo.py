"""What README quotes of the demo: a recorded run, in the form in which a run prints it today."""

import inspect
import re
from typing import Any

import pytest

from app.cli.main import demo as command
from app.commands.demo import INT8, deepest_of
from pruning.models.demo_model import NAME
from tests.support.pages import README
from tools.docs.demo import advice, page, record, table

FOUND = record()
REPORT: dict[str, Any] = FOUND["report"]


def test_the_readme_quotes_the_recorded_run() -> None:
    text = README.read_text(encoding="utf-8")
    assert page(text, FOUND) == text, "run python -m tools.docs.demo"


def test_the_recorded_run_is_of_the_demo_as_it_is() -> None:
    """The number of removals is the default, and the models are those that a run shows."""
    job = REPORT["job"]
    assert len(job["removed_blocks"]) == inspect.signature(command).parameters["num_remove"].default
    shown = [side["model"]["id"] for side in REPORT["models"]]
    assert shown == [NAME, INT8, deepest_of(job)]
    assert f"{len(job['removed_blocks'])} removed" in table(REPORT).splitlines()[2]


def test_the_quoted_answer_is_about_the_depth_that_the_run_was_about() -> None:
    """Rules that choose another depth would have had the run measure and show that one."""
    again, of_run = advice(REPORT), REPORT["advice"]
    taken = again.taken_at(again.loads[0].name)
    assert (taken, again.nearest) == (of_run["taken"], of_run["nearest"])
    depths = range(len(REPORT["job"]["removed_blocks"]) + 1)
    assert {each["num_removed"] for each in of_run["depths"]} == {*depths}, "int8 has 0"


def test_a_page_without_a_place_for_the_answer_is_refused() -> None:
    text = re.sub("generated: answer", "answer", README.read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="has 0 parts for the answer of the demo, expected 1"):
        page(text, FOUND)
