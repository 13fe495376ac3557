"""Compare variants of one model: the same prompts on each in turn, in one engine.

The variants take turns under the load that the service has, and the order rotates. Requests of
several variants at once would wait for each other's steps and look equally fast.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import TypeVar

from app.compare.speedup import Speedup, alternate, speedup
from app.engine.async_engine import AsyncEngine
from app.engine.logprobs import score
from app.engine.sequence import FinishReason, SamplingParams, Timings
from app.engine.variant import Variant
from app.generation.engine_backend import ENGINE_RAISES
from app.generation.generator import Generator
from app.generation.output import Output
from app.generation.request import GenerationRequest, ServedElsewhere
from app.models.registry import LOAD_RAISES, ServedModel
from pruning.plural import counted

MAX_OUTPUTS = 256  # of one comparison
MAX_DRAWN_SEED = 2**53 - 1  # that every reader of JSON keeps (RFC 8259, section 6)
Round = Sequence[Output]  # an output for each prompt


class NotComparable(ValueError):
    """The models are not variants of one dense model that this engine serves, or too many."""

    def __init__(self, message: str, param: str = "models") -> None:
        super().__init__(message)
        self.param = param


RAISES = (NotComparable, *LOAD_RAISES, *ENGINE_RAISES)


@dataclass(frozen=True)
class ComparisonRequest:
    models: Sequence[str]  # a name may appear twice
    baseline: str  # one of the models
    prompts: Sequence[str]
    params: SamplingParams
    stop: Sequence[str]
    repeats: int


@dataclass(frozen=True)
class ComparedVariant:
    """The outputs of one variant, and their likelihood.

    Every round has the same prompts. ``mean_logprobs`` has, for each prompt, the mean
    log-probability of the first round's tokens under the dense model, None without one.
    """

    served: ServedModel
    rounds: Sequence[Round]
    mean_logprobs: Sequence[float | None]


@dataclass(frozen=True)
class Comparison:
    variants: Sequence[ComparedVariant]
    baseline: ComparedVariant
    seed: int | None  # of all outputs; None if they are greedy


@dataclass(frozen=True)
class Speedups:
    """None where an output lacks the time."""

    tpot: Speedup | None
    ttft: Speedup | None
    e2e: Speedup | None


class Comparer:
    """``scored`` is called with the number of tokens of each text that was scored."""

    def __init__(
        self,
        generator: Generator,
        engine: AsyncEngine,
        scored: Callable[[int], object] = lambda _num_tokens: None,
    ) -> None:
        self._generator = generator
        self._engine = engine
        self._scored = scored

    async def compare(self, request: ComparisonRequest) -> Comparison:
        """Raises the errors in ``RAISES``."""
        # first the models: whether the rest fits together is of no use without them
        served = [await self._served(name) for name in request.models]
        if len({one.entry.base for one in served}) > 1:
            raise NotComparable(
                f"{', '.join(request.models)} are variants of different models: name variants of "
                f"one model, which share a tokenizer"
            )
        _check(request)
        params = request.params
        if not params.is_greedy and params.seed is None:
            params = replace(params, seed=secrets.randbelow(MAX_DRAWN_SEED + 1))
        prompts = await self._generator.encode(request.prompts, served, params.max_new_tokens)
        generations = [
            GenerationRequest(one, prompts, params, request.stop, traffic="bench") for one in served
        ]
        rounds = await self._rounds(generations, request.repeats)
        scores = await self._mean_logprobs(served, prompts, [first for first, *_ in rounds])
        variants = [ComparedVariant(*parts) for parts in zip(served, rounds, scores, strict=True)]
        baseline = variants[request.models.index(request.baseline)]
        return Comparison(variants, baseline, params.seed)

    async def _served(self, name: str) -> ServedModel:
        served = await self._generator.load(name)
        if isinstance(served, ServedElsewhere):
            raise NotComparable(
                f"another server generates for {name!r}: only models of this engine, under the "
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
        for _, (request, outputs) in alternate([*zip(requests, rounds, strict=True)], repeats):
            outputs.append(await self._generator.generate(request))
        return rounds

    async def _mean_logprobs(
        self, served: Sequence[ServedModel], prompts: Sequence[Sequence[int]], rounds: list[Round]
    ) -> list[list[float | None]]:
        """Per variant and prompt, under the dense model; equal outputs are scored once."""
        dense = await self._dense(served)
        if dense is None:
            return [[None] * len(prompts) for _ in rounds]
        known: dict[tuple[int, tuple[int, ...]], float | None] = {}
        for outputs in rounds:
            for index, output in enumerate(outputs):
                key = index, token_ids(output)
                if key not in known:
                    known[key] = await self._mean_logprob(dense, prompts[index], key[1])
        return [
            [known[index, token_ids(output)] for index, output in enumerate(outputs)]
            for outputs in rounds
        ]

    async def _dense(self, served: Sequence[ServedModel]) -> Variant | None:
        """The dense model, None unless all are views of it: a parent may be gone or replaced."""
        if not all(one.entry.is_view for one in served):
            return None
        return (await self._served(served[0].entry.base)).variant

    async def _mean_logprob(
        self, dense: Variant, prompt: Sequence[int], output: Sequence[int]
    ) -> float | None:
        if not output:
            return None
        pieces = score(dense, prompt, output, self._engine.max_chunk)
        logprobs = await self._engine.run(pieces, dense)
        self._scored(len(prompt) + len(output))
        return fmean(logprobs)


def _check(request: ComparisonRequest) -> None:
    """Raises ``NotComparable``."""
    if request.baseline not in request.models:
        raise NotComparable(
            f"baseline={request.baseline!r}: expected one of the models", "baseline"
        )
    models, prompts, repeats = len(request.models), len(request.prompts), request.repeats
    if (num_outputs := models * prompts * repeats) > MAX_OUTPUTS:
        raise NotComparable(
            f"{counted(prompts, 'prompt')}, {counted(models, 'model')} and "
            f"{counted(repeats, 'repeat')} make {num_outputs} outputs: at most {MAX_OUTPUTS} are "
            "allowed",
            "repeats",
        )


def token_ids(output: Output) -> tuple[int, ...]:
    return tuple(token.key for token in output.tokens if isinstance(token.key, int))


def speedups(baseline: ComparedVariant, variant: ComparedVariant) -> Speedups:
    """Baseline over variant, of mean times over all prompts. Each round is a pair.

    There is no verdict where an output was cut short, nor one of ``e2e`` where lengths differ.
    """
    every = list(chain.from_iterable((*baseline.rounds, *variant.rounds)))
    reasons = {output.finish_reason.value for output in every}
    objection = None
    if cut := reasons - {FinishReason.STOP, FinishReason.LENGTH}:
        objection = f"outputs were cut short ({', '.join(sorted(cut))})"
    is_unequal = _lengths(baseline) != _lengths(variant)
    unequal = "the outputs differ in length: see tpot, or force equal lengths with ignore_eos"

    def of(time_s: Callable[[Timings], float | None], objection: str | None) -> Speedup | None:
        baseline_s, variant_s = _means_s(baseline, time_s), _means_s(variant, time_s)
        if baseline_s is None or variant_s is None:
            return None
        return speedup(baseline_s, variant_s, objection)

    return Speedups(
        tpot=of(lambda timings: timings.tpot_s, objection),
        ttft=of(lambda timings: timings.ttft_s, objection),
        e2e=of(lambda timings: timings.e2e_s, objection or (unequal if is_unequal else None)),
    )


_Token = TypeVar("_Token")


@dataclass(frozen=True)
class TokenAgreement:
    """``share`` is the number of tokens before the first difference, over those of the longer.

    After the first difference the texts diverge, and equal tokens are a coincidence. An end of
    sequence counts as a token. So the share is 1 for equal outputs only.
    """

    share: float
    first_divergence: int | None  # position from 0; may be the length of the shorter one


def token_agreement(baseline: Sequence[_Token], other: Sequence[_Token]) -> TokenAgreement:
    """Compare the tokens of two outputs. Two empty ones are equal."""
    longest = max(len(baseline), len(other))
    pairs = zip(baseline, other, strict=False)
    common = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
    if common is None:
        common = min(len(baseline), len(other))
    if common == longest:
        return TokenAgreement(1.0, None)
    return TokenAgreement(common / longest, common)


def _means_s(
    variant: ComparedVariant, time_s: Callable[[Timings], float | None]
) -> list[float] | None:
    """The mean time of each round, None if an output lacks it."""
    times_s = [[time_s(output.timings) for output in outputs] for outputs in variant.rounds]
    if any(time is None for time in chain.from_iterable(times_s)):
        return None
    return [fmean(time for time in round_s if time is not None) for round_s in times_s]


def _lengths(variant: ComparedVariant) -> list[list[int]]:
    return [[output.num_tokens for output in outputs] for outputs in variant.rounds]
