"""What is read from the environment without pydantic, which the engine does not import."""

import os


def is_sandboxed() -> bool:
    """Whether files of models that others have written run in processes with limits.

    It is the setting ``sandbox``.
    """
    return os.environ.get("SLEB_SANDBOX") != "off"


def offline_environment() -> dict[str, str]:
    """The environment of a process that loads models without access to a hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
