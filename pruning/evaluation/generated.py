"""Tasks whose questions are generated here: what breaks first in a pruned model, without any file.

A question follows solved ones, and is answered right if greedy decoding writes the whole answer:
arithmetic, JSON, closing brackets, the copy of a long key, and calls of tools.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from pruning.evaluation.paired_tasks import Answers
from pruning.evaluation.probe import (
    CITIES,
    NUM_SOLVED,
    TEMPLATES,
    THINGS,
    Item,
    Question,
    Template,
    items_of,
)
from pruning.evaluation.probe_run import answer
from pruning.evaluation.results import Kind, TaskScore
from pruning.evaluation.zero_shot import AnsweredTask
from pruning.models.forward import Forward
from pruning.removal import standard_error

NUM_AVAILABLE = 500  # questions of each task
_METRIC = "exact_match"
_PAIRS: Mapping[str, str] = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True)
class _Generated:
    kind: Kind
    templates: Sequence[Template]


def _key(rng: random.Random) -> Question:
    groups = [f"{rng.randrange(2**16):04x}" for _ in range(6)]
    key = "-".join(groups)
    return Question(f"key: {key}\nthe same key:", key, ())


def _brackets(rng: random.Random) -> Question:
    opened = [rng.choice([*_PAIRS]) for _ in range(rng.randint(2, 5))]
    closed = [_PAIRS[bracket] for bracket in reversed(opened)]
    return Question(f"open: {' '.join(opened)}\nclose:", " ".join(closed), ())


def _nested(rng: random.Random) -> Question:
    """A list of records in a record."""
    items = [{"item": thing, "count": rng.randint(2, 99)} for thing in rng.sample(THINGS, 2)]
    city = rng.choice(CITIES)
    text = ", ".join(f"{one['count']} {one['item']}" for one in items)
    return Question(f"{city}: {text} ->", json.dumps({"city": city, "items": items}), ())


def _weather(rng: random.Random) -> Question:
    city, days = rng.choice(CITIES), rng.randint(2, 9)
    call = {"name": "forecast", "arguments": {"city": city, "days": days}}
    return Question(f"How is the weather in {city} for {days} days?", json.dumps(call), ())


def _order(rng: random.Random) -> Question:
    thing, count = rng.choice(THINGS), rng.randint(2, 99)
    call = {"name": "order", "arguments": {"item": thing, "count": count}}
    return Question(f"Buy {count} {thing}.", json.dumps(call), ())


_GENERATED: Mapping[str, _Generated] = {
    "gen_arithmetic": _Generated(Kind.ARITHMETIC, TEMPLATES[Kind.ARITHMETIC]),
    "gen_json": _Generated(Kind.JSON, (*TEMPLATES[Kind.JSON], _nested)),
    "gen_brackets": _Generated(Kind.JSON, (_brackets,)),
    "gen_key": _Generated(Kind.COPYING, (_key,)),
    "gen_call": _Generated(Kind.JSON, (_weather, _order)),
}
GENERATED_TASKS = tuple(_GENERATED)


def generated_items(task: str, num_items: int) -> tuple[Item, ...]:
    """The first questions of a task, without wrong answers."""
    generated = _GENERATED[task]
    items = items_of(generated.kind, generated.templates, f"{task} 0", num_items)
    return tuple(replace(item, wrong=()) for item in items)


def answer_generated(
    forward: Forward,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    num_questions: int | None,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[AnsweredTask]:
    """The answers to the first questions of each task; None are all that it has."""
    number = min(num_questions or NUM_AVAILABLE, NUM_AVAILABLE)
    answered = []
    for task in tasks:
        written = answer(forward, tokenizer, generated_items(task, number), observe)
        right = [each.is_written for each in written]
        answered.append(AnsweredTask(_score(task, right), _answers(task, right)))
    return answered


def _answers(task: str, right: Sequence[bool]) -> Answers:
    return Answers(task, tuple(right), 0.0, NUM_AVAILABLE, _METRIC)


def _score(task: str, right: Sequence[bool]) -> TaskScore:
    share = sum(right) / len(right)
    error = standard_error([float(each) for each in right]) if len(right) > 1 else None
    return TaskScore(task, _METRIC, share, error, len(right), NUM_SOLVED, {_METRIC: share})
