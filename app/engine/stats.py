"""What an engine has to do at one moment, as its metrics tell it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class VariantStats:
    num_running: int
    num_waiting: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class EngineStats:
    num_running: int
    num_waiting: int
    kv_cache_usage: float  # 0 to 1: share of the cache tokens reserved by running sequences
    batch_size: int  # sequences in the latest decode forward
    variants: Mapping[str, VariantStats]  # by name; those with anything to do
