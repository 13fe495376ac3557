"""Packages that only some uses need, by the extra of ``pip install`` that brings them."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec


class ExtraMissing(RuntimeError):
    """A feature needs a package that is not installed."""


@dataclass(frozen=True)
class Extra:
    purpose: str
    modules: tuple[str, ...]  # that it brings, and that are imported where they are needed


# the same names as in pyproject.toml
EXTRAS: Mapping[str, Extra] = {
    "cluster": Extra("a service or a search on a Ray cluster", ("ray",)),
    "datasets": Extra("WikiText-2 and C4 from the Hugging Face hub", ("datasets",)),
    "eval": Extra("zero-shot tasks of lm-eval", ("lm_eval",)),
    "gcs": Extra("stores in Google Cloud Storage", ("gcsfs",)),
    "gguf": Extra("files for llama.cpp, and the demo model", ("gguf",)),
    "heal": Extra("healing by training", ("peft",)),
    "mlflow": Extra("runs in MLflow", ("mlflow",)),
    "otel": Extra(
        "traces by OpenTelemetry",
        ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"),
    ),
    "plots": Extra("plots as PNG files", ("matplotlib",)),
    "quantize": Extra("quantized checkpoints", ("compressed_tensors",)),
    "s3": Extra("stores in S3", ("s3fs",)),
}


def has_extra(name: str) -> bool:
    """Whether all modules of the extra can be imported. Imports none of them."""
    return all(_is_there(module) for module in EXTRAS[name].modules)


def require_extra(name: str, what: str) -> None:
    """Raise ``ExtraMissing`` unless the extra is installed. ``what`` begins the message."""
    if not has_extra(name):
        raise ExtraMissing(missing_extra(name, what))


def missing_extra(name: str, what: str) -> str:
    """The message for a user who asks for ``what`` without the extra."""
    return f"{what} requires the extra `{name}`: {install_command(name)}"


def install_command(*names: str) -> str:
    return f"pip install 'sleb-serve[{','.join(names)}]'"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that should contain it is missing
        return False
