"""Evaluate what is served: perplexity on held-out text, beside that of the dense model.

The engine, or vLLM, reads one window after another between the steps of live requests, with the
weights that are in memory. One evaluation runs at a time; others wait for it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from app.compare.likelihood import Scorer
from app.generation.generator import GENERATOR_LOAD_RAISES, Generator
from app.generation.openai_client import EXTERNAL_RAISES
from app.generation.request import Served, ServedElsewhere
from app.models.registry import ServedModel
from pruning.data.texts import TextUnusable, limited_windows, text_windows
from pruning.data.windows import Windows
from pruning.evaluation.quality import Perplexity, interval_of, perplexity_of


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
    perplexities: Sequence[Perplexity]  # with ratios to the dense model's, where that is here
    dense: Sequence[Perplexity] = ()


class Evaluator:
    """``turn`` is held while one evaluates."""

    def __init__(self, generator: Generator, scorer: Scorer, turn: asyncio.Lock) -> None:
        self._generator = generator
        self._scorer = scorer
        self._turn = turn

    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Raises the errors in ``RAISES``."""
        served = await self._served(request.model)
        entry = served.entry
        dense = await self._served(entry.base) if entry.is_view and entry.is_pruned else None
        windows = {
            text: await asyncio.to_thread(_windows, served, text, request) for text in request.texts
        }
        async with self._turn:
            of_dense = [] if dense is None else await self._measured(dense, windows)
            measured = await self._measured(served, windows)
        if dense is None:
            return Evaluation(served, measured)
        pairs = zip(measured, of_dense, strict=True)
        return Evaluation(served, [own.against(whole) for own, whole in pairs], of_dense)

    async def _served(self, name: str) -> Served:
        served = await self._generator.load(name)
        if isinstance(served, ServedElsewhere) and served.vllm is None:
            raise NotEvaluable(
                f"another server generates for {name!r}: only models of this service are evaluated"
            )
        return served

    async def _measured(self, served: Served, windows: dict[str, Windows]) -> list[Perplexity]:
        return [await self._perplexity(served, text, each) for text, each in windows.items()]

    async def _perplexity(self, served: Served, text: str, windows: Windows) -> Perplexity:
        losses = [
            -fmean(await self._scorer.logprobs(served, ids[:1], ids[1:]))
            for ids in windows.token_ids.tolist()
        ]
        return Perplexity(
            text=text,
            num_windows=len(losses),
            seqlen=windows.token_ids.shape[1],
            loss=fmean(losses),
            perplexity=perplexity_of(fmean(losses)),
            digest=windows.digest,
            interval=interval_of(losses),
            losses=tuple(losses),
        )


def _windows(served: Served, text: str, request: EvaluationRequest) -> Windows:
    """Packaged texts need no folder. Raises ``TextUnusable``."""
    if isinstance(served, ServedModel):
        return text_windows(
            text,
            Path(),
            served.variant.model,
            served.tokenizer,
            seqlen=request.seqlen,
            num_windows=request.num_windows,
        )
    assert served.vllm is not None
    return limited_windows(
        text,
        Path(),
        served.vllm.max_scored,
        served.vllm.tokenizer,
        seqlen=request.seqlen,
        num_windows=request.num_windows,
    )
