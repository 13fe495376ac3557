"""The layout of a family of models: where its blocks are, and what its config says about them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def weight_and_bias(*layers: str) -> tuple[str, ...]:
    """The weight and the bias of each of these layers."""
    return tuple(f"{layer}.{name}" for layer in layers for name in ("weight", "bias"))


@dataclass(frozen=True)
class Parts:
    """Names of the parts of a standard block: attention and a feed-forward part, each residual.

    Each part has a norm before and after it, whose name is empty if the family has none.
    """

    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # or one fused projection
    head_norms: tuple[str, ...] = ()  # norms of queries and of keys
    output: str = "o_proj"
    feed_forward: str = "mlp"
    rotation: str = "model.rotary_emb"  # a path from the causal language model
    rotates_by_kind: bool = False  # whether each kind of attention has its own frequencies


@dataclass(frozen=True)
class Fitted:
    """A linear layer of a block that a repair by ridge fits anew.

    What it writes goes into the residual stream: through ``norm`` if the block has that, and
    multiplied by the sigmoid of what ``gate`` returns if that is named.
    """

    layer: str
    norm: str = ""
    gate: str = ""


ATTENTION = Fitted("self_attn.o_proj")


@dataclass(frozen=True)
class StreamWrites:
    """The parameters that write into the residual stream, which a repair can change.

    Multiplying the ``scaled`` parameters multiplies what a block adds to the stream by the same
    factor, as repairs of earlier releases did. A model may lack some of them, such as biases that
    its config turns off. There are none if the block reads its input without a norm, as no factor
    has this effect then. ``refit`` are linear layers that write into the stream, multiplied by
    ``multiplier`` or directly. Those that a block has are fitted together.
    """

    scaled: tuple[str, ...] = weight_and_bias("self_attn.o_proj", "mlp.down_proj")
    offset: float = 0.0  # of norms that multiply by their weight plus this offset
    refit: tuple[Fitted, ...] = (ATTENTION, Fitted("mlp.down_proj"))
    is_transposed: bool = False  # whether the matrices of ``refit`` are [width_in, width_out]
    # Config key of the factor between ``refit`` and the stream, or "KEY.INDEX" of one in a list
    multiplier: str | None = None
    # Config keys, and the values without which none of this is true
    requires: tuple[tuple[str, object], ...] = ()

    @property
    def fitted(self) -> tuple[str, ...]:
        """The names of the layers that are fitted anew, and of the norms that go with them."""
        return tuple(name for each in self.refit for name in (each.layer, each.norm) if name)

    def factor(self, config: "PreTrainedConfig") -> float:
        """By what the output of ``refit`` is multiplied before it is added to the stream."""
        if self.multiplier is None:
            return 1.0
        key, _, place = self.multiplier.partition(".")
        value = getattr(config, key)
        return float(value[int(place)] if place else value)


def plain_writes(*layers: str) -> StreamWrites:
    """Of blocks in which these layers write into the stream, and are fitted anew."""
    return StreamWrites(scaled=weight_and_bias(*layers), refit=tuple(map(Fitted, layers)))


def normed_writes(first: str, second: str, layer: str) -> StreamWrites:
    """Of blocks whose parts end in these norms; ``layer``, in front of the second, is fitted."""
    norms = f"{first}.weight", f"{second}.weight"
    return StreamWrites(scaled=norms, refit=(Fitted(layer, norm=second),))


@dataclass(frozen=True)
class Architecture:
    """The layout of a family. Paths are dotted and start at the causal language model."""

    blocks: str
    tail: tuple[str, ...]  # modules between the last block and the head; some may be None
    per_block: tuple[str, ...] = ("layer_types", "mlp_layer_types")  # lists with an entry per block
    block_kinds: frozenset[str] = frozenset()  # the entries of these lists; empty: any
    # Config keys that describe such a list by a period: views have none, as it may not be true
    periods: tuple[str, ...] = ()
    boundaries: tuple[str, ...] = ()  # config keys that count the blocks up to one
    listed: tuple[str, ...] = ()  # config keys that list blocks by their index
    # Config keys of what becomes of logits: cap * tanh(logits / cap), a factor, and a divisor
    logit_softcap: str | None = None
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    returns_tuple: bool = False  # whether a block returns its hidden states within a tuple
    # Config keys that make blocks depend on their depth, and the values with which they do not
    depth_dependent: tuple[tuple[str, object], ...] = ()
    # Config keys of other mechanisms, and the values with which the family is supported
    only: tuple[tuple[str, object], ...] = ()
    parts: Parts | None = None  # None if blocks are not standard
    has_states: bool = False  # whether blocks keep more of a sequence than keys and values
    has_experts: bool = False
    has_unlike_keys: bool = False  # whether the keys of blocks differ in their shape
    keeps_last: bool = False  # whether the config makes the last block one of a kind
    is_linear: bool = True  # whether all matrices but those of experts belong to linear layers
    loads_quantized: bool = True  # whether transformers reads files with quantized weights
    is_by_position_in_vllm: bool = False  # whether vLLM gives every other block a window
    writes: StreamWrites = StreamWrites()

    @property
    def is_served(self) -> bool:
        """Whether the engine of this project serves the family."""
        return not (self.has_states or self.has_unlike_keys)
