"""Questions whose answer is JSON by a schema: what pruning breaks first.

Generated from a seed, as the probe is. Answers are validated only, not compared with the right one.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruning.evaluation.probe import CITIES, NAMES, THINGS, digest

NUM_QUESTIONS = 36
MAX_NEW_TOKENS = 64
END = "\n\n"  # in front of a further question, if the model invents one
_Z = 1.959964  # of a 95 % interval
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class JsonQuestion:
    """A prompt without trailing space, and the schema that its answer is to fulfil."""

    prompt: str
    schema: Mapping[str, Any]

    def is_answered_by(self, text: str) -> bool:
        """Whether the text up to a blank line is JSON that fulfils the schema."""
        try:
            answer = json.loads(text.strip().split(END)[0], parse_constant=_no_json)
            return fulfils(answer, self.schema)
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True)
class JsonScore:
    """The share of valid answers with its 95 % interval by Wilson (1927).

    Scores compare only for equal ``digest``, of the questions.
    """

    share: float
    low: float
    high: float
    num_valid: int
    num_questions: int
    digest: str

    @classmethod
    def of(cls, num_valid: int, questions: Sequence[JsonQuestion]) -> "JsonScore":
        low, high = wilson(num_valid, len(questions))
        share = num_valid / len(questions)
        return cls(share, low, high, num_valid, len(questions), digest(questions))


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def wilson(num_hits: int, num_trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, which lies within 0 and 1 also for few trials."""
    share, z2 = num_hits / num_trials, _Z * _Z
    middle = share + z2 / (2 * num_trials)
    reach = _Z * math.sqrt((share * (1 - share) + z2 / (4 * num_trials)) / num_trials)
    low, high = ((middle + sign * reach) / (1 + z2 / num_trials) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def json_questions(seed: int = 0, num_questions: int = NUM_QUESTIONS) -> tuple[JsonQuestion, ...]:
    """The kinds in turn; the same for the same arguments."""
    rng = random.Random(f"json {seed}")  # noqa: S311 - a reproducible sample, not a secret
    questions: list[JsonQuestion] = []
    while len(questions) < num_questions:
        question = _question(rng, _KINDS[len(questions) % len(_KINDS)])
        if question not in questions:
            questions.append(question)
    return tuple(questions)


def fulfils(value: Any, schema: Mapping[str, Any]) -> bool:  # noqa: ANN401 - any JSON
    """Whether the value is valid by JSON Schema, of which this has what the questions use."""
    if "type" in schema and not _is_of(value, schema["type"]):
        return False  # and what follows need not compare values of other types
    return all(_CHECKS[keyword](value, asked) for keyword, asked in schema.items())


def _is_of(value: Any, name: str) -> bool:  # noqa: ANN401 - any JSON
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _TYPES[name])


_TYPES: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_CHECKS: Mapping[str, Callable[[Any, Any], bool]] = {
    "type": _is_of,
    "enum": lambda value, options: value in options,
    "minLength": lambda text, least: len(text) >= least,
    "minimum": lambda number, least: number >= least,
    "maximum": lambda number, most: number <= most,
    "minItems": lambda items, least: len(items) >= least,
    "items": lambda items, schema: all(fulfils(item, schema) for item in items),
    "required": lambda fields, names: all(name in fields for name in names),
    "properties": lambda fields, schemas: all(
        name in schemas and fulfils(field, schemas[name]) for name, field in fields.items()
    ),
    "additionalProperties": lambda _fields, _allowed: True,  # "properties" allows no others
}


@dataclass(frozen=True)
class _Kind:
    """A schema of fields that are all required, and facts that fill them."""

    fields: Mapping[str, Mapping[str, Any]]
    draw: Callable[[random.Random], tuple[str, Mapping[str, Any]]]


def _question(rng: random.Random, kind: _Kind) -> JsonQuestion:
    """The question after a solved one of the same kind."""
    solved, answer = kind.draw(rng)
    asked = solved
    while asked == solved:
        asked, _ = kind.draw(rng)
    schema = {
        "type": "object",
        "properties": dict(kind.fields),
        "required": list(kind.fields),
        "additionalProperties": False,
    }
    example = f"Text: {solved}\nJSON: {json.dumps(answer)}"
    return JsonQuestion(f"{example}{END}Text: {asked}\nJSON:", schema)


def _person(rng: random.Random) -> tuple[str, Mapping[str, Any]]:
    name, age, city = rng.choice(NAMES), rng.randint(18, 90), rng.choice(CITIES)
    text = f"{name} is {age} and lives in {city}."
    return text, {"name": name, "age": age, "city": city}


def _order(rng: random.Random) -> tuple[str, Mapping[str, Any]]:
    name, (first, second) = rng.choice(NAMES), rng.sample(THINGS, 2)
    many, more = rng.randint(2, 9), rng.randint(2, 9)
    items = [{"thing": first, "number": many}, {"thing": second, "number": more}]
    return f"{name} buys {many} {first} and {more} {second}.", {"buyer": name, "items": items}


def _meeting(rng: random.Random) -> tuple[str, Mapping[str, Any]]:
    name, day, hour = rng.choice(NAMES), rng.choice(_DAYS), rng.randint(8, 18)
    is_online = rng.random() < 0.5
    place = "online" if is_online else f"in {rng.choice(CITIES)}"
    answer = {"with": name, "day": day, "hour": hour, "online": is_online}
    return f"Meet {name} {place} on {day} at {hour}:00.", answer


def _reading(rng: random.Random) -> tuple[str, Mapping[str, Any]]:
    city = rng.choice(CITIES)
    values = [round(rng.uniform(-9, 35), 1) for _ in range(3)]
    text = f"In {city} it was {values[0]}, {values[1]} and {values[2]} degrees."
    return text, {"city": city, "degrees": values}


_TEXT: Mapping[str, Any] = {"type": "string", "minLength": 1}
_NUMBER: Mapping[str, Any] = {"type": "integer", "minimum": 0}
_ITEM: Mapping[str, Any] = {
    "type": "object",
    "properties": {"thing": _TEXT, "number": _NUMBER},
    "required": ["thing", "number"],
    "additionalProperties": False,
}
_KINDS = (
    _Kind({"name": _TEXT, "age": _NUMBER, "city": _TEXT}, _person),
    _Kind({"buyer": _TEXT, "items": {"type": "array", "items": _ITEM, "minItems": 1}}, _order),
    _Kind(
        {
            "with": _TEXT,
            "day": {"enum": list(_DAYS)},
            "hour": {**_NUMBER, "maximum": 23},
            "online": {"type": "boolean"},
        },
        _meeting,
    ),
    _Kind(
        {"city": _TEXT, "degrees": {"type": "array", "items": {"type": "number"}, "minItems": 3}},
        _reading,
    ),
)
