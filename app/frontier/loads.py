"""The loads on which candidates are timed, by the names that `--loads` takes."""

from collections.abc import Mapping, Sequence

from app.bench.plan import BenchPlan, Scenario
from app.models.loads import PROMPT, load_of, num_streams, order_of
from app.models.measured_speedups import ONE_STREAM
from pruning.evaluation.points import Load
from pruning.spec import InvalidSpec

_PROMPT_TOKENS, _NEW_TOKENS, _LONG_PROMPT = 64, 32, 2048


def plans_of(loads: str, max_model_len: int) -> Mapping[Load, BenchPlan]:
    """What to run for each of the comma-separated ``loads``, on a model of that length.

    Raises ``InvalidSpec``.
    """
    names = dict.fromkeys(name.strip() for name in loads.split(",") if name.strip())
    if not names:
        raise InvalidSpec("loads", "loads is empty: expected as in stream,8,32,prompt")
    return dict(_planned(name, max_model_len) for name in names)


def _planned(name: str, max_model_len: int) -> tuple[Load, BenchPlan]:
    if name == PROMPT:
        tokens = min(_LONG_PROMPT, max_model_len - 1)
        plan = BenchPlan(scenarios=(Scenario.PROMPT,), long_prompt=tokens)
        return load_of(name, tokens), plan
    streams = num_streams(name)
    prompt_tokens = min(_PROMPT_TOKENS, max_model_len // 2)
    plan = BenchPlan(
        scenarios=(Scenario.GENERATION,),
        batch_size=streams,
        prompt_tokens=prompt_tokens,
        new_tokens=min(_NEW_TOKENS, max_model_len - prompt_tokens),
    )
    return load_of(ONE_STREAM if streams == 1 else name), plan


def time_of(plan: BenchPlan) -> str:
    """The time of a run that counts."""
    return "ttft" if plan.scenarios == (Scenario.PROMPT,) else "tpot"


def streams_of(loads: Sequence[Load]) -> Load | None:
    """The load of the most streams, whose tokens are the cheapest. None without any."""
    known = [load for load in loads if load.name != PROMPT]
    return max(known, key=lambda load: order_of(load.name), default=None)
