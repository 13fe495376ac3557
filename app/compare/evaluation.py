"""Evaluate what is served: perplexity on held-out text, beside that of the dense model.

The engine reads one window after another between the steps of live requests, with the weights that
are in memory. One evaluation runs at a time; others wait for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from app.engine.async_engine import AsyncEngine
from app.engine.sampling.logprobs import score
from app.generation.generator import Generator
from app.generation.request import ServedElsewhere
from app.models.registry import LOAD_RAISES, ServedModel
from pruning.data.texts import TextUnusable, text_windows
from pruning.data.windows import Windows
from pruning.evaluation.quality import Perplexity, interval_of, perplexity_of


class NotEvaluable(ValueError):
    """Another server has the weights."""

    param = "model"


RAISES = (NotEvaluable, TextUnusable, *LOAD_RAISES)


@dataclass(frozen=True)
class EvaluationRequest:
    model: str
    texts: Sequence[str]  # packaged ones
    num_windows: int  # of each text
    seqlen: int


@dataclass(frozen=True)
class Evaluation:
    """``dense`` has the texts in the same order; it is empty for a dense model, or without one."""

    served: ServedModel
    perplexities: Sequence[Perplexity]  # with ratios to the dense model's, where that is here
    dense: Sequence[Perplexity] = ()


class Evaluator:
    """``turn`` is held while one evaluates. ``scored`` gets the number of tokens of each window."""

    def __init__(
        self,
        generator: Generator,
        engine: AsyncEngine,
        turn: asyncio.Lock,
        scored: Callable[[int], object] = lambda _num_tokens: None,
    ) -> None:
        self._generator = generator
        self._engine = engine
        self._turn = turn
        self._scored = scored

    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        """Raises the errors in ``RAISES``."""
        served = await self._served(request.model)
        entry = served.entry
        dense = await self._served(entry.base) if entry.is_view and entry.is_pruned else None
        windows = {text: await self._windows(served, text, request) for text in request.texts}
        async with self._turn:
            of_dense = [] if dense is None else await self._measured(dense, windows)
            found = await self._measured(served, windows)
        if dense is None:
            return Evaluation(served, found)
        pairs = zip(found, of_dense, strict=True)
        return Evaluation(served, [own.against(whole) for own, whole in pairs], of_dense)

    async def _served(self, name: str) -> ServedModel:
        served = await self._generator.load(name)
        if isinstance(served, ServedElsewhere):
            raise NotEvaluable(
                f"another server generates for {name!r}: only models of this engine are evaluated"
            )
        return served

    async def _windows(self, served: ServedModel, text: str, request: EvaluationRequest) -> Windows:
        return await asyncio.to_thread(
            text_windows,
            text,
            Path(),  # packaged texts need no folder
            served.variant.model,
            served.tokenizer,
            seqlen=request.seqlen,
            num_windows=request.num_windows,
        )

    async def _measured(self, served: ServedModel, windows: dict[str, Windows]) -> list[Perplexity]:
        return [await self._perplexity(served, text, each) for text, each in windows.items()]

    async def _perplexity(self, served: ServedModel, text: str, windows: Windows) -> Perplexity:
        losses = []
        for ids in windows.token_ids.tolist():
            pieces = score(served.variant, ids[:1], ids[1:], self._engine.max_chunk)
            losses.append(-fmean(await self._engine.run(pieces, served.variant)))
            self._scored(len(ids))
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
