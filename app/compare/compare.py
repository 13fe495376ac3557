"""Compare variants of one model: the same prompts on each in turn, in one engine.

The variants take turns under the load that the service has, and the order rotates. Requests of
several variants at once would wait for each other's steps and look equally fast. The baseline takes
two turns: the second one is the control, which measures the noise floor.
"""

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from statistics import fmean
from typing import TypeVar

from app.compare.likelihood import Scorer
from app.compare.speedup import (
    Kernels,
    Speedup,
    all_kernels,
    beyond_noise,
    different_kernels,
    speedup,
    turns,
)
from app.engine.async_engine import StillWarmingUp
from app.engine.scheduling.sequence import FinishReason, SamplingParams, Timings
from app.engine.variant import Variant
from app.generation.engine_backend import ENGINE_RAISES
from app.generation.generator import GENERATOR_LOAD_RAISES
from app.generation.openai_client import EXTERNAL_RAISES
from app.generation.output import Output
from app.generation.request import GenerationRequest, Served, ServedElsewhere
from app.models.entry import ModelEntry
from app.models.registry import ServedModel
from pruning.plural import counted

MAX_OUTPUTS = 256  # of one comparison
MAX_DRAWN_SEED = 2**53 - 1  # that every reader of JSON keeps (RFC 8259, section 6)
CLOSE = 0.03  # relative half width of an interval, from which on no more repeats are needed
WARM_UP_LIMIT_S = 120.0  # that a comparison waits, before its first turn and before each other
Round = Sequence[Output]  # an output for each prompt


class NotComparable(ValueError):
    """The models are not variants of one dense model that this engine serves, or too many."""

    def __init__(self, message: str, param: str = "models") -> None:
        super().__init__(message)
        self.param = param


RAISES = (
    NotComparable,
    StillWarmingUp,
    *GENERATOR_LOAD_RAISES,
    *ENGINE_RAISES,
    *EXTERNAL_RAISES,
)


@dataclass(frozen=True)
class ComparisonRequest:
    models: Sequence[str]  # a name may appear twice
    baseline: str  # one of the models
    prompts: Sequence[str]
    params: SamplingParams
    stop: Sequence[str]
    repeats: int  # at least
    max_seconds: float = 0.0  # for more of them, until every interval is narrow


@dataclass(frozen=True)
class ComparedVariant:
    """The outputs of one variant, and their likelihood.

    Every round has the same prompts. ``mean_logprobs`` has, for each prompt, the mean
    log-probability of the first round's tokens under the dense model, None without one.
    """

    served: Served
    rounds: Sequence[Round]
    mean_logprobs: Sequence[float | None]

    @property
    def kernels(self) -> Kernels:
        outputs = chain.from_iterable(self.rounds)
        return all_kernels(output.timings.kernels for output in outputs)


@dataclass(frozen=True)
class Comparison:
    """``control`` is the baseline a second time, without log-probabilities; None for one repeat.

    With an ``objection``, its times mean nothing.
    """

    variants: Sequence[ComparedVariant]
    baseline: ComparedVariant
    control: ComparedVariant | None
    objection: str | None
    seed: int | None  # of all outputs; None if they are greedy


@dataclass(frozen=True)
class Speedups:
    """None where an output lacks the time."""

    tpot: Speedup | None
    ttft: Speedup | None
    e2e: Speedup | None


async def run_comparison(
    request: ComparisonRequest,
    scorer: Scorer,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> Comparison:
    """Raises the errors in ``RAISES``.

    Calls ``observe(done, total)`` before the first turn and after each. With ``max_seconds``, the
    total may grow.
    """
    _check(request)
    _check_models([await scorer.generator.entry(name) for name in request.models])
    served = [await scorer.generator.load(name) for name in request.models]
    _check_engines(served, scorer.generator.max_vllm_servers)
    params = request.params
    if not params.is_greedy and params.seed is None:
        params = replace(params, seed=secrets.randbelow(MAX_DRAWN_SEED + 1))
    prompts = await scorer.generator.encode(request.prompts, served, params.max_new_tokens)
    at = request.models.index(request.baseline)
    again = _again(request, at)
    sides = served if again is None or again < len(served) else [*served, served[at]]
    generations = [
        GenerationRequest(one, prompts, params, request.stop, traffic="bench") for one in sides
    ]
    variants = {one.variant for one in served if isinstance(one, ServedModel)}
    progress = _Turns(len(sides), request.repeats, observe)
    with scorer.engine.keeping_kernels():
        rounds, objection = await _rounds(
            scorer, generations, variants, partial(_is_enough, request, at), progress
        )
    firsts = [first for first, *_ in rounds[: len(served)]]
    scores = await scorer.mean_logprobs(served, prompts, firsts)
    scores += [[None] * len(prompts)] * (len(sides) - len(served))
    compared = [ComparedVariant(*parts) for parts in zip(sides, rounds, scores, strict=True)]
    control = None if again is None else compared[again]
    asked = compared[: len(served)]
    return Comparison(asked, asked[at], control, objection, params.seed)


def _check_models(entries: Sequence[ModelEntry]) -> None:
    """Before weights are read. Raises ``NotComparable``."""
    for entry in entries:
        if entry.external is not None:
            raise NotComparable(
                f"{entry.name!r} runs on an external server: only models of this service can be "
                "compared, because they run under the same load"
            )
    if len({entry.base for entry in entries}) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise NotComparable(
            f"{names} are variants of different models: compare variants of one model, which "
            "share a tokenizer"
        )


def _check_engines(served: Sequence[Served], max_servers: int) -> None:
    """Raises ``NotComparable`` for two engines, or more servers than run at once."""
    in_vllm = {one.model.name for one in served if isinstance(one, ServedElsewhere)}
    if in_vllm and any(isinstance(one, ServedModel) for one in served):
        raise NotComparable(
            "some of the models run in vLLM and others in the built-in engine: compare "
            "models of one engine only"
        )
    if len(in_vllm) > max_servers:
        raise NotComparable(
            f"{counted(len(in_vllm), 'model')} in vLLM, but only {max_servers} run at once: "
            "compare fewer models, or raise SLEB_VLLM_SERVERS"
        )


@dataclass(frozen=True)
class _Turns:
    """The turns of a comparison, as far as they are known: each side once in a repeat."""

    num_sides: int
    num_repeats: int
    observe: Callable[[int, int], object]

    def show(self, done: int) -> None:
        repeats = max(self.num_repeats, -(-done // self.num_sides))
        self.observe(done, repeats * self.num_sides)


async def _rounds(
    scorer: Scorer,
    requests: Sequence[GenerationRequest],
    variants: Collection[Variant],
    is_enough: Callable[[Sequence[Sequence[Round]], float], bool],
    progress: "_Turns",
) -> tuple[list[list[Round]], str | None]:
    """The rounds of each request, after an uncounted warm-up of two tokens.

    ``is_enough`` is called after every repeat, with the seconds since the warm-up. The other result
    is an objection to their times. Raises ``StillWarmingUp``.
    """
    progress.show(0)
    await scorer.engine.warmed_up(variants, WARM_UP_LIMIT_S)
    for request in requests:
        few = replace(request.params, max_new_tokens=min(2, request.params.max_new_tokens))
        await scorer.generator.generate(replace(request, prompts=request.prompts[:1], params=few))
    began_s, objection = time.monotonic(), None
    rounds: list[list[Round]] = [[] for _ in requests]
    sides = [*zip(requests, rounds, strict=True)]
    for repeat in count():
        for request, outputs in turns(sides, repeat):
            await scorer.engine.warmed_up(variants, WARM_UP_LIMIT_S)
            outputs.append(await scorer.generator.generate(request))
            progress.show(sum(map(len, rounds)))
            if any(scorer.engine.is_warming_up(variant) for variant in variants):
                objection = "kernels were compiled or selected during the comparison: compare again"
        if is_enough(rounds, time.monotonic() - began_s):
            break
    return rounds, objection


def _is_enough(
    request: ComparisonRequest, baseline: int, rounds: Sequence[Sequence[Round]], seconds: float
) -> bool:
    """Whether these repeats are enough: at least ``repeats``, and with ``max_seconds`` so many that
    every speed-up per token is known closely, the control's too, or as many as that time allows.

    Widths alone decide, as in ``pruning.evaluation.enough``: a rule that looked at the ratios would
    stop at those it likes.
    """
    num_repeats = len(rounds[baseline])
    if num_repeats < request.repeats:
        return False
    most = MAX_OUTPUTS // (len(request.models) * len(request.prompts))
    if num_repeats >= most or seconds >= request.max_seconds:
        return True
    others = (each for side, each in enumerate(rounds) if side != baseline)
    return all(_is_close(each, rounds[baseline]) for each in others)


def _is_close(variant: Sequence[Round], baseline: Sequence[Round]) -> bool:
    per_token = _speedup(baseline, variant, lambda timings: timings.tpot_s)
    if per_token is None:  # outputs of one token: more of them change nothing
        return True
    return (
        per_token.high is not None and per_token.high - per_token.ratio <= CLOSE * per_token.ratio
    )


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
            f"{counted(repeats, 'repeat')} make {num_outputs} outputs: expected at most "
            f"{MAX_OUTPUTS}",
            "repeats",
        )


def _again(request: ComparisonRequest, at: int) -> int | None:
    """The place of the control; None for a single repeat, which allows no verdict anyway.

    A baseline that is named twice is its own control. Otherwise it comes behind all models.
    """
    if request.repeats < 2 and not request.max_seconds:
        return None
    named = enumerate(request.models)
    twice = (index for index, name in named if name == request.baseline and index != at)
    return next(twice, len(request.models))


def speedups(comparison: Comparison, variant: ComparedVariant) -> Speedups:
    """Baseline over variant, of mean times over all prompts. Each round is a pair.

    There is no verdict within the noise of the control, of sides that ran different kernels, where
    an output was cut short, and none of ``e2e`` where lengths differ. So the control itself is
    never faster or slower.
    """
    baseline, control = comparison.baseline, comparison.control
    objection = comparison.objection or _objection(baseline, variant)
    is_unequal = _lengths(baseline) != _lengths(variant)
    unequal = "the outputs differ in length: see tpot, or set ignore_eos for equal lengths"

    def of(time_s: Callable[[Timings], float | None], objection: str | None) -> Speedup | None:
        measured = _speedup(baseline.rounds, variant.rounds, time_s, objection)
        if measured is None:
            return None
        noise = None if control is None else _speedup(baseline.rounds, control.rounds, time_s)
        return beyond_noise(measured, noise)

    return Speedups(
        tpot=of(lambda timings: timings.tpot_s, objection),
        ttft=of(lambda timings: timings.ttft_s, objection),
        e2e=of(lambda timings: timings.e2e_s, objection or (unequal if is_unequal else None)),
    )


def speedup_per_token(comparison: Comparison, variant: ComparedVariant) -> Speedup | None:
    """Without regard to noise. None where the two sides cannot be compared by their times."""
    baseline = comparison.baseline
    if comparison.objection or _objection(baseline, variant):
        return None
    return _speedup(baseline.rounds, variant.rounds, lambda timings: timings.tpot_s)


def _objection(baseline: ComparedVariant, variant: ComparedVariant) -> str | None:
    every = chain.from_iterable((*baseline.rounds, *variant.rounds))
    reasons = {output.finish_reason.value for output in every}
    if cut := reasons - {FinishReason.STOP, FinishReason.LENGTH}:
        return f"outputs were truncated ({', '.join(sorted(cut))})"
    return different_kernels(baseline.kernels, variant.kernels)


def _speedup(
    baseline: Sequence[Round],
    variant: Sequence[Round],
    time_s: Callable[[Timings], float | None],
    objection: str | None = None,
) -> Speedup | None:
    baseline_s, variant_s = _means_s(baseline, time_s), _means_s(variant, time_s)
    if baseline_s is None or variant_s is None:
        return None
    return speedup(baseline_s, variant_s, objection)


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
    rounds: Sequence[Round], time_s: Callable[[Timings], float | None]
) -> list[float] | None:
    """The mean time of each round, None if an output lacks it."""
    times_s = [[time_s(output.timings) for output in outputs] for outputs in rounds]
    if any(time is None for time in chain.from_iterable(times_s)):
        return None
    return [fmean(time for time in round_s if time is not None) for round_s in times_s]


def _lengths(variant: ComparedVariant) -> list[list[int]]:
    return [[output.num_tokens for output in outputs] for outputs in variant.rounds]
