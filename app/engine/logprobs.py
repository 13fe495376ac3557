"""Log-probabilities of a given text, read in chunks without generation."""

from collections.abc import Generator, Sequence

import torch
from transformers import DynamicCache

from app.engine.variant import Variant
from pruning.models.loss import token_losses


def score(
    variant: Variant, prompt_ids: Sequence[int], output_ids: Sequence[int], chunk: int = 512
) -> Generator[None, None, list[float]]:
    """The log-probability of each output token given all tokens before it, in nats, in float32.

    Each step of the generator reads one chunk, so that the engine can step in between. Keys and
    values of the text are kept meanwhile. The prompt must have at least one token.
    """
    tokens = torch.tensor([[*prompt_ids, *output_ids]], device=variant.model.device)
    first = len(prompt_ids)
    cache = DynamicCache(config=variant.model.config)
    found: list[float] = []
    for start in range(0, tokens.shape[1] - 1, chunk):  # the last token needs no prediction
        end = min(start + chunk, tokens.shape[1] - 1)
        rows = _hidden(variant, tokens[:, start:end], start, cache)
        begin = max(start, first - 1)
        if begin < end:
            targets = tokens[0, begin + 1 : end + 1]
            with torch.inference_mode():
                nats, _ = token_losses(variant.model, rows[begin - start :], targets)
            found += (-nats).tolist()
        yield
    return found


@torch.inference_mode()
def _hidden(
    variant: Variant, token_ids: torch.Tensor, start: int, cache: DynamicCache
) -> torch.Tensor:
    """Hidden states before the head, ``[width, hidden_size]``, of tokens ``[1, width]``."""
    positions = torch.arange(start, start + token_ids.shape[1], device=token_ids.device)[None]
    hidden: torch.Tensor = variant.model.base_model(
        input_ids=token_ids, position_ids=positions, cache=cache, use_cache=True
    ).last_hidden_state
    return hidden[0]
