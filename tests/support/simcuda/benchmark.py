"""``benchmarks.gpu --small`` on the simulated GPU, as a process of its own. The folder for its
report is the only argument.
"""

import sys
from pathlib import Path

from benchmarks.gpu.__main__ import PARTS, main
from tests.support.simcuda.device import simulated_cuda

_MEMORY_BYTES = 2**28  # of each card, which is memory of the host

if __name__ == "__main__":
    with simulated_cuda(_MEMORY_BYTES):
        parts = ",".join(part for part in PARTS if part != "vllm")
        main(Path(sys.argv[1]), "cuda", is_small=True, parts=parts, minutes=60.0, predict="")
