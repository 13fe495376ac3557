"""The routes of pruned models past their cuts, and in which order blocks run so that all advance.

A cut is where blocks are missing, and a route the steps that lead a model past its cuts. A stream
is the hidden states of some windows behind a sequence of steps. Models whose sequences begin alike
share streams until they part, and no stream goes further than it is needed. Knows no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby

from pruning.sleb import Blocks

EMBEDDED = 0  # the number of the stream in front of the first block
NUM_BEHIND = 2  # blocks behind a cut that are refitted as well; benchmarks/results has their gain


@dataclass(frozen=True)
class Cut:
    """Blocks are missing behind the kept block ``before`` and in front of the block ``after``.

    ``after`` is the number of blocks if the last blocks are missing.
    """

    before: int
    after: int


class Part(Enum):
    """Windows that go the same way."""

    SELECTION = auto()  # every model runs on them to its end
    SAMPLE = auto()  # the training windows on which steps of a change are tried
    REST = auto()  # all other training windows


Parts = frozenset[Part]
TRAINING: Parts = frozenset({Part.SAMPLE, Part.REST})


@dataclass(frozen=True)
class Run:
    """A block runs as it is."""

    block: int


@dataclass(frozen=True)
class Refit:
    """The block runs with a matrix that is refitted, so that the stream behind it follows the one
    that the dense model has in front of the block ``after``."""

    block: int
    after: int


Step = Run | Refit
Route = tuple[Step, ...]


def observed(step: Step) -> Parts:
    """The windows that a step compares with the dense model."""
    return TRAINING if isinstance(step, Refit) else frozenset()


def cuts_of(keep: Blocks, num_blocks: int) -> tuple[Cut, ...]:
    """The cuts of the model that keeps these blocks, from the first to the last.

    Blocks that are missing in front of the first kept block make no cut: no block in front of them
    could be repaired.
    """
    following = (*keep[1:], num_blocks)
    pairs = zip(keep, following, strict=True)
    return tuple(Cut(before, after) for before, after in pairs if after != before + 1)


def unrepaired(keep: Blocks, num_blocks: int) -> Route:  # noqa: ARG001 - all routes are made alike
    return tuple(Run(block) for block in keep)


def refitted(keep: Blocks, num_blocks: int, num_behind: int = NUM_BEHIND) -> Route:
    """The block in front of each cut is refitted, and so are the next ``num_behind`` behind it."""
    cuts = {cut.before: cut for cut in cuts_of(keep, num_blocks)}

    def steps() -> Iterator[Step]:
        left = 0
        for block in keep:
            left = 1 + num_behind if block in cuts else left - 1
            after = cuts[block].after if block in cuts else block + 1
            yield Refit(block, after) if left > 0 else Run(block)

    return tuple(steps())


@dataclass(frozen=True)
class Stream:
    """What becomes of the stream ``source`` by one step, on the windows of ``parts``.

    ``dense`` is the stream of the dense model in the same place, for steps that compare with it.
    """

    source: int
    step: Step
    parts: Parts
    dense: int | None

    @property
    def reads(self) -> Parts:
        """The windows of which the step reads ``source``."""
        return self.parts | observed(self.step)


@dataclass(frozen=True)
class Visit:
    """While a block has its weights, these streams are made, in this order."""

    block: int
    streams: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All streams by number, and when each is made.

    ``embedded`` are the windows of the first stream. ``ends`` has the last stream of each route.
    ``releases`` has, by the number of a stream, the streams and windows that are needed no more
    when it is made.
    """

    embedded: Parts
    streams: Mapping[int, Stream]
    visits: tuple[Visit, ...]
    ends: tuple[int, ...]
    releases: Mapping[int, frozenset[tuple[int, Part]]]

    def way_to(self, end: int) -> list[int]:
        """The streams that lead to this one, from the first to itself."""
        passed = []
        while end != EMBEDDED:
            passed.append(end)
            end = self.streams[end].source
        return passed[::-1]


def plan_of(routes: Sequence[Route]) -> Plan:
    """The plan of models that take these routes, and of the dense model beside them.

    A model waits at a cut until the dense model has arrived at its other side. The dense model
    stops where it is last compared with, and training windows behind the last fit of a route.
    """
    tree = _Tree()
    last = max(
        (step.after for route in routes for step in route if isinstance(step, Refit)), default=0
    )
    needs = [TRAINING if last else frozenset()] * (last + 1)
    dense = tree.add(tuple(Run(block) for block in range(last)), needs)
    ends = tuple(tree.add(route, _needs(route))[-1] for route in routes)
    streams = {
        number: Stream(
            source,
            step,
            tree.parts[number],
            dense[step.after] if isinstance(step, Refit) else None,
        )
        for (source, step), number in tree.numbers.items()
    }
    visits = tuple(_visits(streams))
    releases = _releases(streams, [number for visit in visits for number in visit.streams], ends)
    return Plan(tree.parts[EMBEDDED], streams, visits, ends, releases)


class _Tree:
    """Streams by what they are made of, and the windows that each is needed for."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, Step], int] = {}
        self.parts: dict[int, Parts] = {EMBEDDED: frozenset()}

    def add(self, route: Route, needs: Sequence[Parts]) -> list[int]:
        """The streams along a route, with the windows that are needed in front of each step and
        at the end."""
        streams = [EMBEDDED]
        self.parts[EMBEDDED] |= needs[0]
        for step, parts in zip(route, needs[1:], strict=True):
            number = self.numbers.setdefault((streams[-1], step), len(self.numbers) + 1)
            self.parts[number] = self.parts.get(number, frozenset()) | parts
            streams.append(number)
        return streams


def _needs(route: Route) -> list[Parts]:
    """The windows that are needed in front of each step, and at the end."""
    needs: list[Parts] = [frozenset({Part.SELECTION})]
    for step in reversed(route):
        needs.append(needs[-1] | observed(step))
    return needs[::-1]


def _visits(streams: Mapping[int, Stream]) -> Iterator[Visit]:
    """The visits in order; within one, the dense stream comes first, as its number is lowest."""
    numbers = sorted(streams, key=lambda number: (_turn(streams[number].step), number))
    for (_, minus_block), group in groupby(numbers, lambda at: _turn(streams[at].step)):
        yield Visit(-minus_block, tuple(group))


def _turn(step: Step) -> tuple[int, int]:
    """When a step can be taken, as the block that the dense model runs then, and minus the block
    that must have its weights: the dense model runs before anything is compared with it."""
    return step.after - 1 if isinstance(step, Refit) else step.block, -step.block


def _releases(
    streams: Mapping[int, Stream], order: Sequence[int], ends: Sequence[int]
) -> dict[int, frozenset[tuple[int, Part]]]:
    last: dict[tuple[int, Part], int] = {}
    for number in order:
        stream = streams[number]
        last |= {(stream.source, part): number for part in stream.reads}
        if stream.dense is not None:
            last |= {(stream.dense, part): number for part in observed(stream.step)}
    for end in ends:
        last.pop((end, Part.SELECTION), None)  # its losses are measured after all steps
    last_needed: dict[int, set[tuple[int, Part]]] = {}
    for what, number in last.items():
        last_needed.setdefault(number, set()).add(what)
    return {number: frozenset(released) for number, released in last_needed.items()}
