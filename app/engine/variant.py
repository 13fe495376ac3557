"""A variant: a dense model without some of its blocks, under a name that is opaque here."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from pruning.models.blocks import num_blocks, view


@dataclass(frozen=True, eq=False)
class Variant:
    """A model to generate with. Compared by identity: a name loaded twice is two variants."""

    name: str
    base: str  # name of the dense parent, its own for the dense model
    keep: tuple[int, ...]  # blocks of the dense model
    model: PreTrainedModel
    eos_token_ids: frozenset[int]
    max_model_len: int  # prompt and generated tokens

    @property
    def is_dense(self) -> bool:
        return self.name == self.base

    @property
    def vocab_size(self) -> int:
        size: int = self.model.config.vocab_size
        return size


def make_variant(
    name: str, base: str, dense_model: PreTrainedModel, keep: Sequence[int] | None = None
) -> Variant:
    """The variant that keeps these blocks, all by default. It shares the weights of the model.

    Raises ``ValueError`` unless ``keep`` has ascending blocks of ``dense_model``.
    """
    every_block = tuple(range(num_blocks(dense_model)))
    blocks = every_block if keep is None else tuple(keep)
    return Variant(
        name=name,
        base=base,
        keep=blocks,
        model=dense_model if blocks == every_block else view(dense_model, blocks),
        eos_token_ids=_eos_token_ids(dense_model),
        max_model_len=_max_model_len(dense_model.config),
    )


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)


def _max_model_len(config: PreTrainedConfig) -> int:
    """Positions of the model. With longrope, those that need no second set of frequencies.

    Beyond them, a longrope model would need every cached key rotated again, per row.
    """
    positions: int = config.max_position_embeddings
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return min(positions, rope.get("original_max_position_embeddings") or positions)
    return positions
