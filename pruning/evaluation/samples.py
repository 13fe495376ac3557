"""Sample texts: how a pruned model continues a few prompts, beside the dense one. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
)
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class Sample:
    """What the likeliest tokens after ``prompt`` are, by both models."""

    prompt: str
    dense: str
    pruned: str

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sample":
        return cls(**data)
