"""The loads on which candidates are timed, by the names that `sleb frontier` keeps them under."""

from app.models.measured_speedups import ONE_STREAM
from pruning.evaluation.points import Load
from pruning.spec import InvalidSpec

PROMPT = "prompt"
MAX_STREAMS = 1024


def load_of(name: str, prompt_tokens: int | None = None) -> Load:
    """``name`` is one stream, a number of them, or a prompt, of so many tokens if that is known."""
    if name == PROMPT:
        length = (
            "a long prompt" if prompt_tokens is None else f"a prompt of {prompt_tokens:,} tokens"
        )
        return Load(name, f"on {length}")
    return Load(name, "at one stream" if name == ONE_STREAM else f"at {name} streams")


def num_streams(name: str) -> int:
    """How many requests run at once at a load. Raises ``InvalidSpec``."""
    streams = 1 if name in {ONE_STREAM, PROMPT} else int(name) if name.isdecimal() else 0
    if not 1 <= streams <= MAX_STREAMS:
        raise InvalidSpec(
            "loads",
            f"loads: {name[:32]!r} is no load: expected stream, prompt, or a number of streams "
            f"from 1 to {MAX_STREAMS}, as in stream,8,32,prompt",
        )
    return streams


def order_of(name: str) -> tuple[bool, int]:
    """A sort key: one stream, more streams, and prompts last."""
    return name == PROMPT, int(name) if name.isdecimal() else 1
