"""Options of a benchmark that takes a moment on a tiny model."""

SMALL = [
    *("--batch-size", "3", "--prompt-tokens", "4", "--new-tokens", "5", "--long-prompt", "9"),
    *("--concurrency", "2", "--requests", "5", "--served-tokens", "3", "--repeats", "2"),
]
