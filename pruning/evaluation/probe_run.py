"""Run the probe on a model: one forward pass over each question with each of its answers.

Nothing is generated: greedy decoding writes the right answer exactly if each of its tokens is the
likeliest after the tokens before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from transformers import PreTrainedTokenizerBase

from pruning.evaluation.probe import Item
from pruning.evaluation.results import ItemResult
from pruning.models.forward import Forward
from pruning.models.loss import token_losses


@dataclass(frozen=True)
class _Candidate:
    """A question followed by one of its answers, whose tokens start at ``begin``."""

    item: int
    option: int  # 0 is right
    token_ids: list[int]
    begin: int


@torch.inference_mode()
def answer(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[ItemResult]:
    """Score the items, and return their results in order. Calls ``observe(done, total)``.

    A tie counts against the right answer, and so does a loss that is not a number.
    """
    candidates = [
        _candidate(tokenizer, item, number, option)
        for number, item in enumerate(items)
        for option in range(1 + len(item.wrong))
    ]
    batches = list(_batches(candidates, forward.batch_tokens))
    verdicts: dict[tuple[int, int], _Verdict] = {}
    hidden = forward.hidden([_padded(batch) for batch in batches])
    for batch, (token_ids, states) in zip(batches, hidden, strict=True):
        for candidate, verdict in zip(
            batch, _verdicts(forward, batch, token_ids, states), strict=True
        ):
            verdicts[candidate.item, candidate.option] = verdict
        observe(len(verdicts), len(candidates))
    return [_answer(number, item, verdicts) for number, item in enumerate(items)]


_Verdict = tuple[float, bool]  # nats of the whole answer, and whether it is written


def _answer(number: int, item: Item, verdicts: Mapping[tuple[int, int], _Verdict]) -> ItemResult:
    nats, is_written = verdicts[number, 0]
    is_chosen = all(nats < verdicts[number, 1 + wrong][0] for wrong in range(len(item.wrong)))
    return ItemResult(item.kind, is_chosen, is_written)


def _candidate(
    tokenizer: PreTrainedTokenizerBase, item: Item, number: int, option: int
) -> _Candidate:
    """Tokenize question and answer together. A token that spans both belongs to the answer."""
    text = item.prompt + (item.answer, *item.wrong)[option]
    prompt: list[int] = tokenizer(item.prompt).input_ids
    whole: list[int] = tokenizer(text).input_ids
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))
    )
    return _Candidate(number, option, whole, max(1, common))


def _batches(candidates: Sequence[_Candidate], batch_tokens: int) -> Iterator[list[_Candidate]]:
    """Batch candidates of similar lengths, to pad little."""
    batch: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: len(candidate.token_ids)):
        if batch and (len(batch) + 1) * len(candidate.token_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(candidate)
    yield batch


def _padded(batch: Sequence[_Candidate]) -> torch.Tensor:
    """Token ids ``[batch, seqlen]``, padded at the end, where causal attention ignores it."""
    rows = [torch.tensor(candidate.token_ids) for candidate in batch]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _verdicts(
    forward: Forward, batch: Sequence[_Candidate], token_ids: torch.Tensor, states: torch.Tensor
) -> Iterator[_Verdict]:
    """The verdicts of a batch, from its hidden states ``[batch, seqlen, hidden_size]``."""
    spans = [(row, slice(c.begin, len(c.token_ids))) for row, c in enumerate(batch)]
    targets = torch.cat([token_ids[row, span] for row, span in spans])
    rows = torch.cat([states[row, span.start - 1 : span.stop - 1] for row, span in spans])
    nats, is_likeliest = token_losses(forward.model, rows, targets)
    lengths = [span.stop - span.start for _, span in spans]
    for ours, likeliest in zip(
        torch.split(nats, lengths), torch.split(is_likeliest, lengths), strict=True
    ):
        yield float(ours.double().sum()), bool(likeliest.all())
