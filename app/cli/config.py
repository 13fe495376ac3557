"""``sleb config``. Imports are lazy."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from app.cli.options import AsJson
from app.config import serve_settings
from app.settings import check_ports, effective_settings
from app.terminal import filled, print_json
from pruning.config import WorkerSettings


def config(as_json: AsJson = False) -> None:
    """Print every setting in effect and its source; secrets are masked."""
    check_ports(serve_settings(), WorkerSettings())
    settings = effective_settings()
    if as_json:
        print_json([asdict(setting) for setting in settings])
        return
    headings = ("variable", "value", "source")
    rows = ((setting.variable, setting.value, setting.source) for setting in settings)
    Console(highlight=False).print(filled(Table(), headings, rows, headings, overflow="fold"))
