"""Compare variants of one model: the same prompts on each in turn, in one engine.

Variants take turns, in another order each round, under whatever load the service has meanwhile.
Requests of several variants at once would wait for one another's steps and look equally fast.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import TypeVar

from app.compare.speedup import Speedup, speedup, turn_order
from app.engine.async_engine import AsyncEngine
from app.engine.logprobs import score
from app.engine.sequence import FinishReason, SamplingParams, Timings
from app.engine.variant import Variant
from app.generation.engine_backend import ENGINE_RAISES, tokenized
from app.generation.generator import Generator
from app.generation.output import Output
from app.generation.request import GenerationRequest, ServedElsewhere
from app.models.registry import LOAD_RAISES, ServedModel

Round = Sequence[Output]  # an output for each prompt


class NotComparable(ValueError):
    """The models are no variants of one dense model that is generated for here."""

    param = "models"


RAISES = (NotComparable, *LOAD_RAISES, *ENGINE_RAISES)


@dataclass(frozen=True)
class Question:
    models: Sequence[str]  # a name may come twice
    baseline: int  # index into models
    prompts: Sequence[str]
    params: SamplingParams
    stop: Sequence[str]
    repeats: int


@dataclass(frozen=True)
class Side:
    """What one variant has answered: rounds of equal prompts, and what the dense model says of the
    first, per prompt the mean log-probability of a token; None where there is no dense model.
    """

    served: ServedModel
    rounds: Sequence[Round]
    mean_logprobs: Sequence[float | None]


@dataclass(frozen=True)
class Comparison:
    sides: Sequence[Side]
    baseline: Side
    seed: int | None  # that all answers were drawn with; None if they are greedy


@dataclass(frozen=True)
class Speedups:
    """None where a time is not known of every answer."""

    tpot: Speedup | None
    ttft: Speedup | None
    e2e: Speedup | None


class Comparer:
    def __init__(self, generator: Generator, engine: AsyncEngine) -> None:
        self._generator = generator
        self._engine = engine

    async def compare(self, question: Question) -> Comparison:
        """Raises what ``Generator`` does, and ``NotComparable``."""
        served = [await self._served(name) for name in question.models]
        if len({its.entry.base for its in served}) > 1:
            raise NotComparable(
                f"{', '.join(question.models)} are variants of different models: name variants of "
                f"one, whose tokens mean the same"
            )
        params = question.params
        if not params.is_greedy and params.seed is None:
            params = replace(params, seed=secrets.randbelow(2**63))
        prompts = await tokenized(question.prompts, served[0])
        requests = [
            GenerationRequest(its, prompts, params, question.stop, traffic="bench")
            for its in served
        ]
        rounds = await self._rounds(requests, question.repeats)
        scores = await self._scores(served, prompts, [its[0] for its in rounds])
        sides = [Side(*its) for its in zip(served, rounds, scores, strict=True)]
        return Comparison(sides, sides[question.baseline], params.seed)

    async def _served(self, name: str) -> ServedModel:
        served = await self._generator.load(name)
        if isinstance(served, ServedElsewhere):
            raise NotComparable(
                f"another server generates for {name!r}: only what runs in this engine, under the "
                f"same load, can be compared"
            )
        return served

    async def _rounds(
        self, requests: Sequence[GenerationRequest], repeats: int
    ) -> list[list[Round]]:
        """The rounds of each request, after an uncounted warm-up of two tokens."""
        for request in requests:
            few = replace(request.params, max_new_tokens=min(2, request.params.max_new_tokens))
            await self._generator.generate(
                replace(request, prompts=request.prompts[:1], params=few)
            )
        rounds: list[list[Round]] = [[] for _ in requests]
        for repeat in range(repeats):
            for index in turn_order(len(requests), repeat):
                rounds[index].append(await self._generator.generate(requests[index]))
        return rounds

    async def _scores(
        self, served: Sequence[ServedModel], prompts: Sequence[Sequence[int]], rounds: list[Round]
    ) -> list[list[float | None]]:
        """Mean log-probabilities under the dense model; equal answers are read once."""
        dense = await self._dense(served)
        if dense is None:
            return [[None] * len(prompts) for _ in rounds]
        known: dict[tuple[int, tuple[int, ...]], float | None] = {}
        for answers in rounds:
            for index, output in enumerate(answers):
                key = index, token_ids(output)
                if key not in known:
                    known[key] = await self._mean_logprob(dense, prompts[index], key[1])
        return [
            [known[index, token_ids(output)] for index, output in enumerate(answers)]
            for answers in rounds
        ]

    async def _dense(self, served: Sequence[ServedModel]) -> Variant | None:
        """Of which all are views; None if one is not, as its parent is gone or was replaced."""
        if not all(its.entry.is_view for its in served):
            return None
        return (await self._served(served[0].entry.base)).variant

    async def _mean_logprob(
        self, dense: Variant, prompt: Sequence[int], answer: Sequence[int]
    ) -> float | None:
        if not answer:
            return None
        pieces = score(dense, prompt, answer, self._engine.max_chunk)
        return fmean(await self._engine.run(pieces, dense))


def token_ids(output: Output) -> tuple[int, ...]:
    return tuple(token.key for token in output.tokens if isinstance(token.key, int))


def speedups(baseline: Side, side: Side) -> Speedups:
    """Baseline over side, of mean times over all prompts; the pairs are the rounds.

    The time per token is that of tokens behind the first. The time of whole answers says nothing
    where they differ in length, and none says anything where an answer was cut short.
    """
    every = list(chain.from_iterable((*baseline.rounds, *side.rounds)))
    objection = None
    if cut := {its.finish_reason.value for its in every} - {FinishReason.STOP, FinishReason.LENGTH}:
        objection = f"answers were cut short ({', '.join(sorted(cut))})"
    is_unequal = _lengths(baseline) != _lengths(side)
    unequal = "the answers differ in length: see tpot, or force equal lengths with ignore_eos"

    def of(time_s: Callable[[Timings], float | None], objection: str | None) -> Speedup | None:
        theirs_s, ours_s = _means_s(baseline, time_s), _means_s(side, time_s)
        if theirs_s is None or ours_s is None:
            return None
        return speedup(theirs_s, ours_s, objection)

    return Speedups(
        tpot=of(lambda timings: timings.tpot_s, objection),
        ttft=of(lambda timings: timings.ttft_s, objection),
        e2e=of(lambda timings: timings.e2e_s, objection or (unequal if is_unequal else None)),
    )


def _means_s(side: Side, time_s: Callable[[Timings], float | None]) -> list[float] | None:
    """Of each round; None unless it is known of every answer."""
    times_s = [[time_s(its.timings) for its in answers] for answers in side.rounds]
    if any(its is None for its in chain.from_iterable(times_s)):
        return None
    return [fmean(its for its in round_s if its is not None) for round_s in times_s]


def _lengths(side: Side) -> list[list[int]]:
    return [[output.num_tokens for output in answers] for answers in side.rounds]


_Token = TypeVar("_Token")


@dataclass(frozen=True)
class Agreement:
    """``share`` is that of the longer answer's tokens which stand before the first difference.

    Behind it the two continue different texts, and tokens that are equal there are so by chance. An
    end of sequence is a token too. So it is exactly 1 for equal answers, and for no others.
    """

    share: float
    first_divergence: int | None  # position from 0; of the shorter answer it may be the end


def agreement(baseline: Sequence[_Token], other: Sequence[_Token]) -> Agreement:
    """Of the tokens of two answers; two empty ones are equal."""
    longest = max(len(baseline), len(other))
    pairs = zip(baseline, other, strict=False)
    common = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
    if common is None:
        common = min(len(baseline), len(other))
    if common == longest:
        return Agreement(1.0, None)
    return Agreement(common / longest, common)
