"""Generate the sample texts. Greedy, without a cache: a few short texts, by any architecture."""

import time
from collections.abc import Callable, Sequence
from itertools import takewhile

import torch
from transformers import PreTrainedTokenizerBase

from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.results import Sample
from pruning.models.blocks import final_logits
from pruning.models.forward import Forward, InMemoryForward
from pruning.search.dense_model import DenseModel

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
)
MAX_NEW_TOKENS = 24
LIMIT_S = 20.0  # of each model; a slow one writes less


def sample_texts(
    dense: DenseModel, pruned: PrunedModel, clock: Callable[[], float] = time.monotonic
) -> tuple[Sample, ...]:
    """How both models continue the prompts. None of a streamed one, which is read for each token.

    Both texts have as many tokens, unless one ends.
    """
    whole = dense.forward(dense.every_block)
    forward = dense.forward(pruned.keep, None, pruned.own)
    if not isinstance(whole, InMemoryForward):
        return ()
    prompts: list[list[int]] = [dense.tokenizer(prompt).input_ids for prompt in PROMPTS]
    sides = [_continued(each, prompts, clock) for each in (whole, forward)]
    length = min(len(tokens) for side in sides for tokens in side)
    ends = _ends(dense)
    texts = [[_text(dense.tokenizer, tokens[:length], ends) for tokens in side] for side in sides]
    return tuple(Sample(*parts) for parts in zip(PROMPTS, *texts, strict=True))


@torch.inference_mode()
def _continued(
    forward: Forward, prompts: Sequence[Sequence[int]], clock: Callable[[], float]
) -> list[list[int]]:
    """The new tokens of each prompt; equally many, also behind an end of the text."""
    started = clock()
    rows = [list(prompt) for prompt in prompts]
    limit = forward.model.config.max_position_embeddings
    for _ in range(MAX_NEW_TOKENS):
        if max(map(len, rows)) >= limit or clock() - started > LIMIT_S:
            break
        batch = torch.nn.utils.rnn.pad_sequence([*map(torch.tensor, rows)], batch_first=True)
        [(_, states)] = forward.hidden([batch])  # padding is behind: causal attention ignores it
        last = torch.stack([state[len(row) - 1] for state, row in zip(states, rows, strict=True)])
        tokens: list[int] = final_logits(forward.model, last).argmax(dim=1).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


def _ends(dense: DenseModel) -> frozenset[int]:
    """The tokens that end a text."""
    config, tokenizer = dense.model.generation_config, dense.tokenizer
    ids = (config.eos_token_id if config else None, tokenizer.eos_token_id)
    each = [one if isinstance(one, list) else [one] for one in ids]
    return frozenset(token for some in each for token in some if token is not None)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: frozenset[int]) -> str:
    text = tokenizer.decode(list(takewhile(lambda token: token not in ends, tokens)))
    assert isinstance(text, str), "of one row of tokens"
    return text
