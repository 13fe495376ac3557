"""lm-eval's model, with log-likelihoods that compute each context once for all its continuations.

Needs the extra ``eval``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.evaluation.task_errors import TaskUnusable
from pruning.models.architectures import architecture
from pruning.models.loss import last_hidden, token_losses
from pruning.models.products import float32_products

_Request = tuple[tuple[str, str], list[int], list[int]]  # texts, and token ids of both
_LogLikelihood = tuple[float, bool]  # of all tokens, and whether each of them is the likeliest
_BATCH_TOKENS = 1024  # with more, rows differ more in length, and padding takes the time
_GENERATED_AT_ONCE = 16  # prompts


class SharedContexts(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """Scores continuations in rows of one context and all its continuations.

    Calls ``observe(done, total)`` with numbers of continuations.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        observe: Callable[[int, int], object],
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=_GENERATED_AT_ONCE)
        self._observe = observe

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], **_options: object
    ) -> list[_LogLikelihood]:
        model: PreTrainedModel = self.model
        wanted = [
            _wanted(number, context, continuation, self.max_length)
            for number, (_, context, continuation) in enumerate(requests)
        ]
        found: dict[int, _LogLikelihood] = {}
        for batch in _batches(_rows(wanted, is_shared=shares_contexts(model))):
            found.update(_scored(model, batch))
            self._observe(len(found), len(requests))
        return [found[number] for number in range(len(requests))]


def shares_contexts(model: PreTrainedModel) -> bool:
    """Whether tokens that a mask hides have no effect, and positions are given by number.

    Not so with recurrent states or windows of attention, whose models get a row per continuation.
    """
    config = model.config
    row = architecture(config)
    kinds = set(getattr(config, "layer_types", None) or ())
    has_windows = bool(getattr(config, "sliding_window", None)) or bool(kinds - {"full_attention"})
    return row.parts is not None and not row.has_states and not has_windows


@dataclass(frozen=True)
class _Wanted:
    """A request by its number, with a context that fits into the positions of the model."""

    number: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class _Row:
    """A context, followed by each of its continuations without their last tokens."""

    wanted: Sequence[_Wanted]

    @property
    def context(self) -> tuple[int, ...]:
        return self.wanted[0].context

    @property
    def is_plain(self) -> bool:
        return len(self.wanted) == 1

    @property
    def token_ids(self) -> list[int]:
        return [*self.context, *(t for each in self.wanted for t in each.continuation[:-1])]

    @property
    def begins(self) -> list[int]:
        """Where each continuation begins."""
        begins = [len(self.context)]
        for each in self.wanted:
            begins.append(begins[-1] + len(each.continuation) - 1)
        return begins[:-1]

    @property
    def predicting(self) -> list[int]:
        """The places whose predictions are the continuations, one after the other."""
        last = len(self.context) - 1
        return [
            place
            for begin, each in zip(self.begins, self.wanted, strict=True)
            for place in (last, *range(begin, begin + len(each.continuation) - 1))
        ]


def _wanted(
    number: int, context: Sequence[int], continuation: Sequence[int], max_length: int
) -> _Wanted:
    """Drop the start of a text that is too long, as lm-eval does. The last token is not read.

    Raises ``TaskUnusable`` for an answer that is too long by itself.
    """
    room = max_length + 1 - len(continuation)
    if room < 1:
        raise TaskUnusable(
            f"an answer has {len(continuation)} tokens, and the model takes {max_length} at most: "
            "leave that question out"
        )
    return _Wanted(number, tuple(context[-room:]), tuple(continuation))


def _rows(wanted: Sequence[_Wanted], *, is_shared: bool) -> list[_Row]:
    if not is_shared:
        return [_Row([each]) for each in wanted]
    by_context = groupby(sorted(wanted, key=lambda each: each.context), lambda each: each.context)
    return [_Row(list(group)) for _, group in by_context]


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Batch rows of similar lengths, to pad little; those that need no mask by themselves."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (row.is_plain, len(row.token_ids))):
        is_full = (len(batch) + 1) * len(row.token_ids) > _BATCH_TOKENS
        if batch and (is_full or batch[0].is_plain != row.is_plain):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _scored(model: PreTrainedModel, rows: Sequence[_Row]) -> Iterator[tuple[int, _LogLikelihood]]:
    """The number of each request of the rows, and its result."""
    tokens = [torch.tensor(row.token_ids) for row in rows]
    token_ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(model.device)
    hidden = last_hidden(model, token_ids) if rows[0].is_plain else _hidden(model, rows, token_ids)
    states = torch.cat([hidden[at, row.predicting] for at, row in enumerate(rows)])
    wanted = [each for row in rows for each in row.wanted]
    targets = torch.tensor([token for each in wanted for token in each.continuation])
    nats, is_likeliest = token_losses(model, states, targets.to(model.device))
    lengths = [len(each.continuation) for each in wanted]
    parts = zip(wanted, nats.split(lengths), is_likeliest.split(lengths), strict=True)
    for each, own, likeliest in parts:
        yield each.number, (-float(own.double().sum()), bool(likeliest.all()))


def _hidden(model: PreTrainedModel, rows: Sequence[_Row], token_ids: torch.Tensor) -> torch.Tensor:
    """The inputs of the head, where each continuation follows the context directly."""
    length = token_ids.shape[1]
    masks, positions = zip(*(_layout(row, length) for row in rows), strict=True)
    dtype = model.dtype
    is_hidden = ~torch.stack(masks).unsqueeze(1).to(model.device)
    mask = torch.zeros(is_hidden.shape, dtype=dtype, device=model.device)
    mask.masked_fill_(is_hidden, torch.finfo(dtype).min)
    arguments: dict[str, Any] = {
        "attention_mask": mask,
        "position_ids": torch.stack(positions).to(model.device),
        "use_cache": False,
    }
    with float32_products(next(model.parameters()), token_ids.numel()):
        states: torch.Tensor = model.base_model(token_ids, **arguments).last_hidden_state
    return states


def _layout(row: _Row, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each place sees, and its position: the context, and its own continuation up to it."""
    part = torch.zeros(length, dtype=torch.long)
    position = torch.arange(length)
    begin_of = [*row.begins, len(row.token_ids)]
    for number in range(len(row.wanted)):
        span = slice(begin_of[number], begin_of[number + 1])
        part[span] = 1 + number
        position[span] = len(row.context) + torch.arange(span.stop - span.start)
    is_same = part.unsqueeze(1) == part.unsqueeze(0)
    is_visible = (is_same | (part == 0).unsqueeze(0)).tril()
    position[len(row.token_ids) :] = 0  # padding, which only padding sees
    return is_visible, position
