"""The probe: small questions with one right answer, for losses that perplexity does not show.

Arithmetic, copying, JSON and short code, generated from a seed: nothing is downloaded, and no model
was trained on them. Each question follows solved examples and has plausible wrong answers.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pruning.evaluation.results import Kind

NUM_ITEMS = 40  # of each kind
NUM_SOLVED = 3  # in front of each question
_NUM_WRONG = 3
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hal", "Ida", "Jan", "Kim", "Lea")
CITIES = ("Bonn", "Cork", "Graz", "Kyoto", "Lyon", "Oslo", "Quito", "Riga", "Turin", "Zagreb")
THINGS = ("pens", "cups", "keys", "eggs", "nuts", "hats", "maps", "bags")
_WORDS = (
    "river", "lamp", "stone", "cloud", "table", "horse", "green", "paper", "window", "bread",
    "silver", "garden", "winter", "bottle", "music", "forest", "candle", "letter", "market",
    "ocean", "pepper", "saddle", "ticket", "velvet", "yellow", "bridge", "copper", "dragon",
)  # fmt: skip
_CALLED: Mapping[str, Callable[[Sequence[int]], int]] = {
    "max": max,
    "min": min,
    "len": len,
    "sum": sum,
}


@dataclass(frozen=True)
class Item:
    """A question without trailing space. Answers start with a space and end with a newline."""

    kind: Kind
    prompt: str
    answer: str
    wrong: tuple[str, ...]


def probe_items(seed: int = 0, num_items: int = NUM_ITEMS) -> tuple[Item, ...]:
    """``num_items`` of each kind; the same for the same arguments."""
    return tuple(
        item
        for kind, templates in TEMPLATES.items()
        for item in items_of(kind, templates, f"{kind} {seed}", num_items)
    )


def items_of(
    kind: Kind, templates: "Sequence[Template]", seed: str, num_items: int
) -> Iterator[Item]:
    """Different items of these templates in turn; the first of more items are the same."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible sample, not a secret
    questions: set[str] = set()
    while len(questions) < num_items:
        item = _item(rng, kind, templates[len(questions) % len(templates)])
        if item.prompt not in questions:
            questions.add(item.prompt)
            yield item


def digest(items: Sequence[Any]) -> str:
    """Hex sha256 of all questions and answers, or of other dataclasses."""
    return hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest()


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    wrong: Sequence[str]  # some may be right by chance, or twice there


Template = Callable[[random.Random], Question]


def _item(rng: random.Random, kind: Kind, template: Template) -> Item:
    """A question after solved ones of the same template."""
    asked = template(rng)
    solved: list[Question] = []
    while len(solved) < NUM_SOLVED:
        question = template(rng)
        if question.text != asked.text:
            solved.append(question)
    lines = [f"{question.text} {question.answer}\n" for question in solved]
    wrong = [f" {text}\n" for text in dict.fromkeys(asked.wrong) if text != asked.answer]
    return Item(
        kind, "".join([*lines, asked.text]), f" {asked.answer}\n", tuple(wrong[:_NUM_WRONG])
    )


def _near(rng: random.Random, number: int) -> list[str]:
    """Plausible wrong results."""
    slips = [number + 1, number - 1, number + 10, number + 2, abs(number - 10)]
    return [str(slip) for slip in rng.sample(slips, len(slips)) if slip >= 0]


def _calculated(rng: random.Random, sign: str, low: int, high: int) -> Question:
    left, right = rng.randint(low, high), rng.randint(low, high)
    result = left + right if sign == "+" else left * right
    return Question(f"{left} {sign} {right} =", str(result), _near(rng, result))


def _difference(rng: random.Random) -> Question:
    right, rest = rng.randint(1, 9), rng.randint(1, 10)
    return Question(f"{right + rest} - {right} =", str(rest), _near(rng, rest))


def _story(rng: random.Random) -> Question:
    had, got = rng.randint(2, 9), rng.randint(2, 9)
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    text = f"{name} had {had} {things} and got {got} more. Now {name} has"
    return Question(
        text, f"{had + got} {things}.", [f"{n} {things}." for n in _near(rng, had + got)]
    )


def _swapped(rng: random.Random, words: Sequence[str]) -> Iterator[Sequence[str]]:
    """Every way of swapping two neighbours, in any order."""
    for at in rng.sample(range(len(words) - 1), len(words) - 1):
        yield [*words[:at], words[at + 1], words[at], *words[at + 2 :]]


def _copied(rng: random.Random, words: Sequence[str]) -> Question:
    text = " ".join(words)
    wrong = [" ".join(others) for others in _swapped(rng, words)]
    return Question(f"Say: {text}\nSaid:", text, wrong)


def _words(rng: random.Random) -> Question:
    return _copied(rng, rng.sample(_WORDS, rng.randint(5, 7)))


def _codes(rng: random.Random) -> Question:
    return _copied(rng, [f"{rng.choice('bcdfghjk')}{rng.randint(10, 99)}" for _ in range(5)])


def _recall(rng: random.Random) -> Question:
    names = rng.sample(NAMES, 5)
    cities = rng.sample(CITIES, 5)
    told = ", ".join(f"{name}: {city}" for name, city in zip(names, cities, strict=True))
    at = rng.randrange(5)
    wrong = [city for city in cities if city != cities[at]]
    return Question(f"{told}. {names[at]}:", cities[at], wrong)


def _record(rng: random.Random, values: Mapping[str, Any]) -> Question:
    """A line of fields as JSON. Wrong answers swap values, or lack a quote, a colon or the end."""
    text = ", ".join(f"{key}={value}" for key, value in values.items())
    right = json.dumps(values)
    keys = list(values)
    swapped = {**values, keys[0]: values[keys[-1]], keys[-1]: values[keys[0]]}
    last = f'"{keys[-1]}"'
    wrong = [
        json.dumps(swapped),
        right.replace(last, last[:-1]),
        right.replace(f"{last}: ", f"{last} "),
        right.replace("}", "]"),
    ]
    return Question(f"{text} ->", right, rng.sample(wrong, len(wrong)))


def _person(rng: random.Random) -> Question:
    return _record(rng, {"name": rng.choice(NAMES), "age": rng.randint(20, 89)})


def _trip(rng: random.Random) -> Question:
    start, end = rng.sample(CITIES, 2)
    return _record(rng, {"from": start, "to": end, "days": rng.randint(2, 9)})


def _stock(rng: random.Random) -> Question:
    values = {"item": rng.choice(THINGS), "count": rng.randint(11, 99)}
    return _record(rng, {**values, "sold": rng.choice([True, False])})


def _called(rng: random.Random) -> Question:
    """A call of a built-in function on a few numbers, and its value."""
    numbers = rng.sample(range(1, 20), rng.randint(3, 5))
    name = rng.choice(list(_CALLED))
    value = _CALLED[name](numbers)
    wrong = [str(number) for number in (*numbers, sum(numbers), len(numbers))]
    return Question(f"{name}({numbers}) ==", str(value), wrong)


def _indexed(rng: random.Random) -> Question:
    words = rng.sample(_WORDS, 4)
    at = rng.randrange(4)
    wrong = [f'"{word}"' for word in rng.sample(words, 4)]
    return Question(f"{json.dumps(words)}[{at}] ==", f'"{words[at]}"', wrong)


def _defined(rng: random.Random) -> Question:
    """A one-line function, from its description."""
    number = rng.randint(2, 99)
    said = {"add": "+", "subtract": "-", "multiply by": "*", "divide by": "/"}
    word = rng.choice(list(said))
    wrong = [f"lambda x: x {sign} {number}" for sign in said.values()]
    text = f"# {word} {number}\nf ="
    return Question(text, f"lambda x: x {said[word]} {number}", rng.sample(wrong, len(wrong)))


TEMPLATES: Mapping[Kind, Sequence[Template]] = {
    Kind.ARITHMETIC: (
        partial(_calculated, sign="+", low=1, high=9),
        partial(_calculated, sign="+", low=11, high=79),
        _difference,
        partial(_calculated, sign="*", low=2, high=9),
        _story,
    ),
    Kind.COPYING: (_words, _codes, _recall),
    Kind.JSON: (_person, _trip, _stock),
    Kind.CODE: (_called, _indexed, _defined),
}
