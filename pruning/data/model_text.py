"""Text that a model writes itself, sampled in batches whose keys and values take bounded memory."""

from collections.abc import Callable
from functools import partial

import torch
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList

SAMPLING_CACHE_BYTES = 4 * 2**30

Observe = Callable[[int, int], None]  # done, total


def unobserved(_done: int, _total: int) -> None:
    """Follows nothing."""


@torch.inference_mode()
def sampled_text(
    model: PreTrainedModel,
    num_windows: int,
    seqlen: int,
    seed: int,
    observe: Observe = unobserved,
) -> torch.Tensor:
    """Sample windows ``[num_windows, seqlen]`` from the model, each from its first token on.

    Windows whose keys and values take ``SAMPLING_CACHE_BYTES`` together are sampled at once. This
    does not depend on the memory that is free, as the text would then depend on it too.
    ``observe`` is called after every token of these windows, and may raise.
    """
    size = max(1, SAMPLING_CACHE_BYTES // _cached_bytes(model, seqlen))
    sizes = [min(size, num_windows - first) for first in range(0, num_windows, size)]
    devices = [model.device] if model.device.type == "cuda" else []
    sampled = []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for number, at_once in enumerate(sizes):
            follow = partial(_followed, observe, number * seqlen, len(sizes) * seqlen)
            sampled.append(_sampled_at_once(model, at_once, seqlen, follow))
    return torch.cat(sampled)


def _followed(
    observe: Observe, before: int, total: int, token_ids: torch.Tensor, *_: object, **__: object
) -> torch.Tensor:
    observe(before + token_ids.shape[1], total)
    return torch.zeros(len(token_ids), dtype=torch.bool, device=token_ids.device)


def _sampled_at_once(
    model: PreTrainedModel, num_windows: int, seqlen: int, follow: Callable[..., torch.Tensor]
) -> torch.Tensor:
    assert isinstance(model, GenerationMixin)
    start = model.generation_config.bos_token_id
    if start is None:
        start = model.config.bos_token_id or 0
    if not 0 <= start < model.config.vocab_size:  # as in some published configs
        start = 0
    token_ids = torch.full((num_windows, 1), int(start), device=model.device)
    sampled: torch.Tensor = model.generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=None,
        max_length=seqlen,
        min_length=seqlen,
        stopping_criteria=StoppingCriteriaList([follow]),
    )
    return sampled.cpu()


def _cached_bytes(model: PreTrainedModel, seqlen: int) -> int:
    """The keys and values of a window in all blocks."""
    width = 0
    for config in model.config.per_layer_config:
        num_heads: int = config.num_attention_heads
        num_keys = getattr(config, "num_key_value_heads", None) or num_heads
        width += num_keys * (getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    return int(2 * width * seqlen * model.dtype.itemsize)
