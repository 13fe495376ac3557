"""What stands in for other servers in the tests of benchmarks."""

import sys
from pathlib import Path

from tests.support.pages import ROOT

FORCED = {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}

# A program that is called as ``vllm serve`` is, and serves the model by this project.
_STAND_IN = """#!{python}
import os, sys
from pathlib import Path

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

link = Path({data!r}) / "models" / option("--served-model-name")
link.parent.mkdir(parents=True)
link.symlink_to(sys.argv[2])
os.environ.update(SLEB_DATA_DIR={data!r}, SLEB_PORT=option("--port"), PYTHONPATH={root!r})
os.execv(sys.executable, [sys.executable, "-m", "app", "serve"])
"""


def write_stand_in(program: Path, data_dir: Path) -> None:
    """A program in place of vLLM's. It serves from this directory, which it makes."""
    text = _STAND_IN.format(python=sys.executable, root=str(ROOT), data=str(data_dir))
    program.write_text(text)
    program.chmod(0o755)
