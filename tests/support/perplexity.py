"""Perplexity by a loop over windows, to compare with."""

from math import exp
from statistics import fmean

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = "\n".join(f"line {number}: the quick brown fox, naïve and 数学" for number in range(60))


@torch.inference_mode()
def perplexity_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, seqlen: int
) -> float:
    token_ids = tokenizer(text, return_tensors="pt").input_ids
    nats = []
    for begin in range(0, token_ids.shape[1] - seqlen + 1, seqlen):
        window = token_ids[:, begin : begin + seqlen]
        logits = model(window).logits[0].float()
        nats.append(F.cross_entropy(logits[:-1], window[0, 1:]).item())
    return exp(fmean(nats))
