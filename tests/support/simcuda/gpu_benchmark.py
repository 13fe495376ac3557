"""The benchmark for GPUs on the simulated device, as a process of its own: torch makes its threads
for gradients once, for the devices that there are."""

import typer

from benchmarks.gpu.__main__ import main
from tests.support.simcuda.device import simulated_cuda

if __name__ == "__main__":
    with simulated_cuda():
        typer.run(main)
