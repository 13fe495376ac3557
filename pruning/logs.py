"""Log lines, for people or as JSON, with what their context knows: a request's id, a job's."""

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import structlog
from structlog.typing import EventDict, WrappedLogger

LogFormat = Literal["text", "json"]
Known = Callable[[], Mapping[str, str]]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logging(level: str, log_format: LogFormat, known: Known = dict) -> None:
    """Send all logging of this process to stderr; ``known`` is asked at every line."""
    handler = logging.StreamHandler()
    is_json = log_format == "json"
    handler.setFormatter(_json_formatter(known) if is_json else _TextFormatter(known))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _TextFormatter(logging.Formatter):
    def __init__(self, known: Known) -> None:
        super().__init__(_TEXT)
        self._known = known

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        found = " ".join(f"{name}={value}" for name, value in self._known().items())
        line = super().formatMessage(record)
        return f"{line} [{found}]" if found else line


def _json_formatter(known: Known) -> logging.Formatter:
    """One object a line: timestamp, level, logger, event, what is known, and the traceback."""

    def add_known(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        return {**event, **known()}

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_known,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
