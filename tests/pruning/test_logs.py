"""Log lines as text and as JSON, with the ids of their context."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Literal, get_args

import pytest

from app.config import ServeSettings
from app.server.serve import set_up_process
from pruning.logs import LogFormat, set_up_logging

logger = logging.getLogger("sleb.test")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # basicConfig would close those of pytest
    yield
    root.handlers, root.level = handlers, level


def logged(log_format: LogFormat, capsys: pytest.CaptureFixture[str], **known: str) -> str:
    set_up_logging("info", log_format, lambda: known)
    logger.debug("not told")
    try:
        raise ValueError("a \n line")
    except ValueError:
        logger.exception("it %s", "broke")
    return capsys.readouterr().err


def test_json_is_an_object_a_line_with_the_traceback_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [line] = logged("json", capsys, request_id="req-7").splitlines()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", found.pop("timestamp"))
    assert found.pop("exception").endswith("ValueError: a \n line")
    assert found == {
        "event": "it broke",
        "level": "error",
        "logger": "sleb.test",
        "request_id": "req-7",
    }


def test_text_has_the_id_behind_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = logged("text", capsys, request_id="req-7").splitlines()
    assert first.endswith("ERROR sleb.test: it broke [request_id=req-7]")
    assert rest[-2:] == ["ValueError: a ", " line"]


@pytest.mark.parametrize("log_format", get_args(LogFormat))
def test_a_line_of_no_request_has_no_id(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    text = logged(log_format, capsys)
    assert "it broke" in text
    assert "request_id" not in text
    assert "[" not in text.splitlines()[0].partition("broke")[2].partition("Traceback")[0]


def test_setting_up_twice_does_not_log_twice(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info", "json")
    assert len(logged("json", capsys).splitlines()) == 1


@pytest.mark.parametrize("level", ["debug", "info"])
def test_urls_that_are_asked_are_not_logged_as_they_may_have_secrets(
    level: Literal["debug", "info"], capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_process(ServeSettings(log_level=level))
    logging.getLogger("httpx2").info("HTTP Request: POST https://hook/?token=hunter2")
    logging.getLogger("sleb.test").info("of ours")
    told = capsys.readouterr().err
    assert "of ours" in told
    assert "hunter2" not in told
