"""Sample texts: how a pruned model continues a few prompts, beside the dense one. No torch here."""

from dataclasses import dataclass

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
