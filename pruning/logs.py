"""Log lines as text or JSON, with fields of their context, such as the id of a request or job."""

import logging
from collections.abc import Callable, Mapping
from typing import Literal

import structlog

LogFormat = Literal["text", "json"]
ContextFields = Callable[[], Mapping[str, str]]

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logging(level: str, log_format: LogFormat, context: ContextFields = dict) -> None:
    """Send all log lines of this process to stderr. ``context`` is called for every line."""
    handler = logging.StreamHandler()
    is_json = log_format == "json"
    handler.setFormatter(_json_formatter(context) if is_json else _TextFormatter(context))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _TextFormatter(logging.Formatter):
    def __init__(self, context: ContextFields) -> None:
        super().__init__(_TEXT)
        self._context = context

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as logging has it
        fields = " ".join(f"{name}={value}" for name, value in self._context().items())
        line = super().formatMessage(record)
        return f"{line} [{fields}]" if fields else line


def _json_formatter(context: ContextFields) -> logging.Formatter:
    """One object per line: timestamp, level, logger, event, context fields and exception."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            lambda _logger, _name, event: {**event, **context()},
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
