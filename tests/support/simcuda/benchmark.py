"""``benchmarks.gpu --small`` on the simulated GPU, as a process of its own. The folder for its
report is the only argument. Of the families, a dense one and one with experts run.
"""

import sys
from pathlib import Path

from benchmarks.gpu import families
from benchmarks.gpu.__main__ import PARTS, main
from tests.support.simcuda.device import simulated_cuda

_MEMORY_BYTES = 5 * 2**27  # of each card, which is memory of the host

if __name__ == "__main__":
    with simulated_cuda(_MEMORY_BYTES):
        families.FAMILIES = {name: families.FAMILIES[name] for name in ("llama", "mixtral")}
        parts = ",".join(part for part in PARTS if part != "vllm")
        main(Path(sys.argv[1]), "cuda", is_small=True, parts=parts, minutes=60.0, predict="")
