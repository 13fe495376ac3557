"""Evaluate what is served: perplexity on held-out text, beside that of the dense model.

The engine, or vLLM, reads one window after another between the steps of live requests, with the
weights that are in memory. One evaluation runs at a time; others wait for it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from transformers import PreTrainedModel

from app.compare.likelihood import Scorer
from app.generation.generator import GENERATOR_LOAD_RAISES, Generator
from app.generation.openai_client import EXTERNAL_RAISES
from app.generation.request import Served, ServedElsewhere
from app.models.registry import ServedModel
from pruning.data.texts import TextUnusable, text_windows
from pruning.data.windows import Windows
from pruning.evaluation.perplexity import perplexity_on
from pruning.evaluation.quality import Perplexity


class NotEvaluable(ValueError):
    """A server that was declared has the weights."""

    param = "model"


RAISES = (NotEvaluable, TextUnusable, *GENERATOR_LOAD_RAISES, *EXTERNAL_RAISES)


@dataclass(frozen=True)
class EvaluationRequest:
    model: str
    texts: Sequence[str]  # packaged ones
    num_windows: int  # of each text
    seqlen: int


@dataclass(frozen=True)
class Evaluation:
    """``dense`` has the texts in the same order; it is empty for a dense model, or without one."""

    served: Served
    windows: Mapping[str, Windows]  # by text
    perplexities: Sequence[Perplexity]  # with ratios to the dense model's, where that is here
    dense: Sequence[Perplexity] = ()


async def evaluate(request: EvaluationRequest, scorer: Scorer, turn: asyncio.Lock) -> Evaluation:
    """``turn`` is held while one evaluates. Raises the errors in ``RAISES``."""
    served = await _served(request.model, scorer.generator)
    entry = served.entry
    has_dense = entry.is_view and (entry.is_pruned or entry.is_int8)
    dense = await _served(entry.base, scorer.generator) if has_dense else None
    windows = {
        text: await asyncio.to_thread(_windows, served, text, request) for text in request.texts
    }
    async with turn:
        of_dense = [] if dense is None else await _measured(dense, windows, scorer)
        measured = await _measured(served, windows, scorer)
    if dense is None:
        return Evaluation(served, windows, measured)
    pairs = zip(measured, of_dense, strict=True)
    return Evaluation(served, windows, [own.against(whole) for own, whole in pairs], of_dense)


async def _served(name: str, generator: Generator) -> Served:
    served = await generator.load(name)
    if isinstance(served, ServedElsewhere) and served.vllm is None:
        raise NotEvaluable(
            f"{name!r} runs on an external server: only models of this service can be evaluated"
        )
    return served


def _windows(served: Served, text: str, request: EvaluationRequest) -> Windows:
    """Packaged texts need no folder. Raises ``TextUnusable``."""
    if isinstance(served, ServedModel):
        model: PreTrainedModel | int = served.variant.model
    else:
        assert served.vllm is not None
        model = served.vllm.max_scored
    assert served.tokenizer is not None
    lengths = {"seqlen": request.seqlen, "num_windows": request.num_windows}
    return text_windows(text, Path(), model, served.tokenizer, **lengths)


async def _measured(
    served: Served, windows: Mapping[str, Windows], scorer: Scorer
) -> list[Perplexity]:
    measured = []
    for text, each in windows.items():
        losses = [
            -fmean(await scorer.logprobs(served, ids[:1], ids[1:]))
            for ids in each.token_ids.tolist()
        ]
        measured.append(perplexity_on(each, text, losses))
    return measured
