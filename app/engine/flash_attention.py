"""Attention of a chunk of a prompt by torch's flash attention on a CPU, without a mask.

With a mask, keys must be copied for the heads that share them, and all scores are computed. So the
chunk's own tokens and those before it are two calls, whose results are merged by the logarithms of
their sums of weights (FlashAttention, arXiv 2205.14135, section 3.1).
"""

import torch


def chunk_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float
) -> torch.Tensor:
    """``[heads, N, head_dim]``, of the last ``N`` tokens of ``[key_heads, tokens, head_dim]``.

    Each query sees all tokens up to its own. Successive heads share keys.
    """
    (num_heads, num, width), num_key_heads = queries.shape, len(keys)
    num_before = keys.shape[1] - num
    grouped = queries.reshape(num_key_heads, -1, num, width)
    own_keys, own_values = (
        each[:, None, num_before:].expand(-1, grouped.shape[1], -1, -1) for each in (keys, values)
    )
    own, own_sums = _flash(grouped, own_keys, own_values, scaling, is_causal=True)
    if not num_before:
        return own.reshape(num_heads, num, width)
    # All queries see all earlier tokens, so those of the heads that share keys are of one head.
    past_keys, past_values = (each[:, None, :num_before] for each in (keys, values))
    of_one_head = grouped.reshape(num_key_heads, 1, -1, width)
    past, past_sums = _flash(of_one_head, past_keys, past_values, scaling, is_causal=False)
    share = torch.sigmoid(past_sums.view_as(own_sums) - own_sums)[..., None].to(own.dtype)
    return torch.lerp(own, past.reshape(own.shape), share).reshape(num_heads, num, width)


def _flash(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float, *,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What the queries get, and the logarithm of each one's sum of weights."""
    attended, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, 0.0, is_causal, scale=scaling
    )
    return attended, sums
