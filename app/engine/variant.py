"""A variant: a dense model without some of its blocks, repaired or not, under an opaque name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from pruning.models.architectures import UnsupportedConfig
from pruning.models.blocks import num_blocks, view
from pruning.models.names import split_int8
from pruning.repair.folding import repaired_view
from pruning.repair.repair import Repaired


@dataclass(frozen=True, eq=False)
class Variant:
    """A model to generate with. Compared by identity: a name loaded twice is two variants."""

    name: str
    base: str  # name of the dense parent, its own for the dense model
    keep: tuple[int, ...]  # blocks of the dense model
    model: PreTrainedModel
    eos_token_ids: frozenset[int]
    max_model_len: int  # prompt and generated tokens
    own_bytes: int = 0  # of the tensors that it does not share with the dense model

    @property
    def is_dense(self) -> bool:
        """Whether it has all blocks, whatever its weights."""
        return split_int8(self.name)[0] == self.base

    @property
    def vocab_size(self) -> int:
        size: int = self.model.config.vocab_size
        return size


def make_variant(
    name: str,
    base: str,
    dense_model: PreTrainedModel,
    keep: Sequence[int] | None = None,
    repaired: Repaired | None = None,
) -> Variant:
    """The variant that keeps these blocks, all by default. It shares the weights of the model,
    except those that ``repaired`` has changed.

    Raises ``ValueError`` unless ``keep`` has ascending blocks of ``dense_model``, and
    ``UnsupportedConfig`` for an end of text that is no token.
    """
    every_block = tuple(range(num_blocks(dense_model)))
    blocks = every_block if keep is None else tuple(keep)
    is_dense = blocks == every_block
    model = dense_model
    if not is_dense and repaired is not None:
        model = repaired_view(dense_model, blocks, repaired)
    elif not is_dense:
        model = view(dense_model, blocks)
    shared = {id(weight) for weight in dense_model.parameters()}
    own = {id(weight): weight.nbytes for weight in model.parameters()}
    return Variant(
        name=name,
        base=base,
        keep=blocks,
        model=model,
        eos_token_ids=_eos_token_ids(dense_model),
        max_model_len=_max_model_len(dense_model.config),
        own_bytes=sum(own[weight] for weight in own.keys() - shared),
    )


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    if eos is None:
        eos = getattr(model.config, "eos_token_id", None)
    ids = [*eos] if isinstance(eos, list | tuple) else [] if eos is None else [eos]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise UnsupportedConfig(
            f"eos_token_id={json.dumps(eos)}: expected a token id or a list of token ids, "
            "in generation_config.json or config.json"
        )
    return frozenset(ids)


def _max_model_len(config: PreTrainedConfig) -> int:
    """Positions of the model, of which steps have the frequencies of its original length.

    Beyond that, a model with others would need every cached key rotated again, per row.
    """
    positions: int = config.max_position_embeddings
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = [each for each in rope.values() if isinstance(each, dict)]
    originals = [
        each.get("original_max_position_embeddings") or positions
        for each in by_kind or [rope]
        if each.get("rope_type") == "longrope"
    ]
    return min([positions, *originals])
