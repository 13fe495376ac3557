"""The command line as a process of torchrun, which a test may have killed at a named call.

The data directory comes from the environment. Run as ``-m tests.support.healing_process heal ...``.
"""

from torch import distributed

from app.cli.main import main
from pruning.config import WorkerSettings
from tests.support.deaths import set_death

if __name__ == "__main__":
    set_death(WorkerSettings().data_dir, f"rank-{distributed.get_node_local_rank()}")
    main()
