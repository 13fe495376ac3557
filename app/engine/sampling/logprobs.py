"""Log-probabilities of given tokens: of prompts as they are read, and of a text without generation.

The head runs on chunks of rows, so that logits of all tokens never exist at once.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from collections.abc import Sequence as Values
from functools import partial
from itertools import accumulate

import torch
from transformers import DynamicCache

from app.engine.running.model_runner import Forwarded
from app.engine.scheduling.scheduler import Batch
from app.engine.scheduling.sequence import PromptToken, Sequence
from app.engine.transfer import Download, upload
from app.engine.variant import Variant
from pruning.models.loss import rows_per_chunk, token_losses

logger = logging.getLogger(__name__)

Logits = Callable[[torch.Tensor], torch.Tensor]  # float32 [rows, vocab] of [rows, width]


@torch.inference_mode()
def score_prompts(batch: Batch, forwarded: Forwarded, head: Logits) -> list[Sequence]:
    """Give the sequences that report them the prompt tokens which this forward predicts.

    To be called before ``num_cached`` counts the forward. Returns the sequences for which this
    fails, which is logged.
    """
    failed: list[Sequence] = []
    firsts = accumulate(batch.num_scheduled_tokens, initial=0)
    for first, seq, num in zip(firsts, batch.sequences, batch.num_scheduled_tokens, strict=False):
        try:
            chunks = partial(_logits, batch.variant, forwarded, head)
            _score_prompt(chunks, seq, first, num)
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.exception("no log-probabilities for request %s", seq.request.request_id)
            failed.append(seq)
    return failed


def _score_prompt(
    chunks: Callable[[int, int], Iterator[torch.Tensor]], seq: Sequence, first: int, num: int
) -> None:
    num_best = seq.request.params.num_prompt_logprobs
    end = min(seq.num_cached + num, len(seq.request.prompt_ids) - 1)
    if num_best is None or seq.num_generated or end <= seq.num_cached:
        return
    targets = seq.tokens[seq.num_cached + 1 : end + 1]
    for logits in chunks(first, first + len(targets)):
        seq.scored += _scored(logits, targets[: len(logits)], num_best)
        targets = targets[len(logits) :]


def _logits(
    variant: Variant, forwarded: Forwarded, head: Logits, first: int, end: int
) -> Iterator[torch.Tensor]:
    """Float32 logits ``[rows, vocab]`` of these scheduled tokens, in chunks."""
    if forwarded.hidden is None:  # one token for each sequence
        yield forwarded.logits[first:end]
        return
    per_chunk = rows_per_chunk(variant.model, forwarded.hidden.device)
    for rows in forwarded.hidden[first:end].split(per_chunk):
        yield head(rows)


def _scored(logits: torch.Tensor, targets: Values[int], num_best: int) -> list[PromptToken]:
    logprobs = logits.log_softmax(dim=-1)
    of_targets = logprobs.gather(1, upload(targets, logits.device)[:, None])[:, 0]
    best = logprobs.topk(min(num_best, logprobs.shape[-1]), dim=-1)
    found = Download(of_targets, best.indices, best.values).read()
    rows = zip(targets, *found, strict=True)
    return [
        PromptToken(token_id, logprob, tuple(zip(best_ids, best_values, strict=True)))
        for token_id, logprob, best_ids, best_values in rows
    ]


def score(
    variant: Variant, prompt_ids: Values[int], output_ids: Values[int], chunk: int = 512
) -> Generator[None, None, list[float]]:
    """The log-probability of each output token given all tokens before it, in nats, in float32.

    Each step of the generator reads one chunk, so that the engine can step in between. Keys and
    values of the text are kept meanwhile. The prompt must have at least one token.
    """
    tokens = torch.tensor([[*prompt_ids, *output_ids]], device=variant.model.device)
    first = len(prompt_ids)
    cache = DynamicCache(config=variant.model.config)
    logprobs: list[float] = []
    for start in range(0, tokens.shape[1] - 1, chunk):  # the last token needs no prediction
        end = min(start + chunk, tokens.shape[1] - 1)
        rows = _hidden(variant, tokens[:, start:end], start, cache)
        begin = max(start, first - 1)
        if begin < end:
            targets = tokens[0, begin + 1 : end + 1]
            with torch.inference_mode():
                nats, _ = token_losses(variant.model, rows[begin - start :], targets)
            logprobs += (-nats).tolist()
        yield
    return logprobs


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
