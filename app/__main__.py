"""``python -m app`` is ``sleb``."""

import signal
import sys

from app.cli.main import main
from pruning.process import end_with_parent


def run_child() -> None:
    """Run a command in a process that ends with its parent, whose id is the first argument."""
    end_with_parent(int(sys.argv.pop(1)), signal.SIGTERM)
    main()


if __name__ == "__main__":
    main()
