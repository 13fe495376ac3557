"""What stands in for other servers in the tests of benchmarks."""

FORCED = {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}

# A program that is called as ``vllm serve`` is, and serves the model by this project.
STAND_IN = """#!{python}
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
