"""How this process starts a command of ``sleb`` that ends with it."""

import os
import sys
from collections.abc import Sequence


def command_of(name: str) -> Sequence[str]:
    """The command line, to which arguments can be added."""
    code = "from app.__main__ import run_child; run_child()"
    return sys.executable, "-c", code, str(os.getpid()), name
