"""Why tasks of lm-eval cannot be evaluated."""

from pruning.extras import has_extra, missing_extra


class ZeroShotUnavailable(RuntimeError):
    """lm-eval is not installed."""


class TaskUnusable(ValueError):
    """lm-eval has no such task, or cannot load its data."""


def require_lm_eval() -> None:
    """Raise ``ZeroShotUnavailable`` unless lm-eval is installed."""
    if not has_extra("eval"):
        raise ZeroShotUnavailable(missing_extra("eval", "a zero-shot task"))
