"""Text that a model writes itself, from its first token on, in batches."""

from collections.abc import Callable

import torch
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList

MAX_BATCH_TOKENS = 2**15  # whose keys and values are in memory at once; at least one window

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
    *,
    batch_tokens: int = MAX_BATCH_TOKENS,
) -> torch.Tensor:
    """Sample windows ``[num_windows, seqlen]`` from the model, each from its first token on.

    ``observe`` is called after every token of the windows of a batch, and may raise.
    """
    size = max(1, batch_tokens // seqlen)
    sizes = [min(size, num_windows - start) for start in range(0, num_windows, size)]
    devices = [model.device] if model.device.type == "cuda" else []
    found = [torch.empty((0, seqlen), dtype=torch.int64)]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for number, batch in enumerate(sizes):

            def heard(done: int, before: int = number * seqlen) -> None:
                observe(before + done, len(sizes) * seqlen)

            found.append(_batch(model, batch, seqlen, heard))
    return torch.cat(found)


def _batch(
    model: PreTrainedModel, num_windows: int, seqlen: int, heard: Callable[[int], None]
) -> torch.Tensor:
    def go_on(token_ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        heard(token_ids.shape[1])
        return torch.zeros(len(token_ids), dtype=torch.bool, device=token_ids.device)

    assert isinstance(model, GenerationMixin)
    start = model.generation_config.bos_token_id
    if start is None:
        start = model.config.bos_token_id or 0
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
        stopping_criteria=StoppingCriteriaList([go_on]),
    )
    return sampled.cpu()
