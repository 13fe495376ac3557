"""The progress bar with which transformers converts GGUF files, which is turned off.

It ignores the setting that turns all other bars of transformers off, and in a narrow terminal, or
in a log, it prints a line for every few tensors.
"""

from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging


def hide_gguf_bar() -> None:
    """Let the bar follow the setting of ``set_up_torch``. Can be called repeatedly."""
    module: Any = modeling_gguf_pytorch_utils
    logging.disable_progress_bar()
    module.tqdm = logging.tqdm
