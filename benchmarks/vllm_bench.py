"""Runs of ``vllm bench serve`` in one process of vLLM's environment, whose imports take seconds.

A line of standard input has the arguments of a run in JSON. When it has ended, an empty line goes
to standard output.
"""

import json
import sys
from contextlib import redirect_stdout

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser


def run_all() -> None:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            main(parser.parse_args(json.loads(line)))
        sys.stdout.write("\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run_all()
