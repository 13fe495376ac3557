"""Token ids for a tiny model, and the logits that it computes for them."""

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import block_calls, final_logits, finish
from pruning.models.streaming import StreamedModel
from tests.support.tiny import VOCAB_SIZE


def token_ids(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, use_cache=False).logits
    return logits


@torch.inference_mode()
def streamed_logits(streamed: StreamedModel) -> torch.Tensor:
    with streamed.embeddings():
        hidden, calls = block_calls(streamed.model, token_ids())
    for block in streamed.blocks(range(len(calls))):
        hidden = calls[block](hidden)
    with streamed.head():
        return final_logits(streamed.model, finish(streamed.model, hidden))
