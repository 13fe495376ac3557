"""A process that opens models of others for the first time, each in a fork with limits.

It hides torch, which configs and tokenizers do not need, so that it starts in a second. It is asked
for a path on a line of JSON, answers on another, and ends when it is not asked for a while.
"""

import json
import os
import select
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pruning.models.tokenizer_bounds import check_tokenizer
from pruning.process import (
    be_killed_first,
    fork_and_do,
    limit_memory,
    limit_time,
    lower_priority,
    took_longer,
)
from pruning.records import InvalidRecord

_DEADLINE_S = 120.0  # of one model, on a busy machine
_IDLE_S = 60.0
_NICENESS = 5
_MEMORY_BYTES = 2**30  # beside what the process has, and what follows from the files
_BYTES_PER_BYTE = 30  # of a tokenizer in memory, and of its file
_SAMPLE = string.printable + "naïve 数学 🦊" + 64 * " "
_WHAT = "opening its config, tokenizer and chat template"


def open_model(path: Path) -> None:
    """Open what a served model needs before its weights are read.

    Raises ``InvalidRecord`` for a tokenizer beyond its bounds. Other errors are those that opening
    it again will raise.
    """
    from pruning.models.store import load_tokenizer, parse_config  # noqa: PLC0415 - takes a second

    check_tokenizer(path)
    with _errors_that_return():
        parse_config(path)
    with _errors_that_return():
        tokenizer: Any = load_tokenizer(path)
        tokenizer.decode(tokenizer(_SAMPLE)["input_ids"])
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": "a"}]
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@contextmanager
def _errors_that_return() -> Iterator[None]:
    """Drop the errors that opening the model again will raise, but not those of memory."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            raise MemoryError from error


def opened(path: Path, cpu_s: float) -> dict[str, str]:
    """Open the model in a fork. The answer says why it is refused, if it is."""
    reading, writing = os.pipe()

    def work() -> None:
        limit_memory(_MEMORY_BYTES + _BYTES_PER_BYTE * _small_bytes(path))
        limit_time(cpu_s, _DEADLINE_S)
        try:
            open_model(path)
        except InvalidRecord as error:
            os.write(writing, str(error).encode()[:1_000])
            raise

    pid = fork_and_do(work)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reason = pipe.read().decode(errors="replace")
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        return {}
    if took_longer(status):
        reason = f"{_WHAT} takes more than {cpu_s:g} s"
    return {"refused": reason or f"{_WHAT} takes too much memory, or ends the process"}


def _small_bytes(path: Path) -> int:
    """Of all files but the weights."""
    files = (file for file in path.iterdir() if file.suffix != ".safetensors" and file.is_file())
    return sum(file.stat().st_size for file in files)


def main() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]
    lower_priority(_NICENESS)
    be_killed_first()
    import transformers.models.auto.tokenization_auto  # noqa: F401, PLC0415 - before the forks

    while select.select([sys.stdin], [], [], _IDLE_S)[0] and (line := sys.stdin.readline()):
        request = json.loads(line)
        answer = opened(Path(request["path"]), request["cpu_s"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
