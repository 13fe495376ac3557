"""What a model of a card says of each figure that this benchmark measures, without a card.

Simulators of whole engines are off by a tenth or more where they know no profile of a card, so
figures here may be off by a third. What they are for is to tell a mistake by its size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

from benchmarks.gpu.arithmetic import (
    BANDWIDTH_SHARE,
    KERNEL_GAP_S,
    LAUNCH_S,
    Card,
    ModelSize,
    card_named,
)
from benchmarks.gpu.plan import GpuPlan
from pruning.checkpoints.markdown import markdown_table
from pruning.search.staged import stages

KERNELS_PER_BLOCK, OTHER_KERNELS = 33, 34  # of a decode step; a test counts them
_READS = 3  # torch copies the pages that a step reads: read, written, read again
_GRAIN_TOKENS = 256  # recorded steps read at least so much of each sequence
_PREFILL_TOKENS = 512  # of one forward of the engine


@dataclass(frozen=True)
class Figure:
    """A figure of a part of the benchmark, and the path to it in what the part has measured.

    The path is empty if no part measures it.
    """

    part: str
    name: str
    unit: str
    value: float
    path: tuple[str | int, ...]

    def measured(self, parts: Mapping[str, Any]) -> float | None:
        """The same of a report, in whose parts times of minutes are seconds; None without it."""
        if self.part not in parts or not self.path:
            return None
        value: float = reduce(getitem, self.path, parts[self.part])
        return value / 60 if self.unit == "min" else value


def predicted(plan: GpuPlan, card: Card) -> list[Figure]:
    """All figures of a run on the card."""
    parts = (_steps, _generate, _pruned, _search, _int8, _stream, _heal)
    return [figure for part in parts for figure in part(plan, card)]


def table(plan: GpuPlan, cards: Sequence[Card]) -> str:
    """A Markdown table with a column for each card."""
    columns = [predicted(plan, card) for card in cards]
    rows = [
        [of[0].part, f"{of[0].name}, {of[0].unit}", *(in_words(figure.value) for figure in of)]
        for of in zip(*columns, strict=True)
    ]
    return markdown_table(["part", "figure", *(card.name for card in cards)], rows, 2)


def comparison(report: Mapping[str, Any], plan: GpuPlan) -> list[str]:
    """The parts that were run, as a Markdown table; empty on a card that is not known."""
    gpus: list[str] = report["machine"]["gpus"]
    card = card_named(gpus[0]) if gpus else None
    if card is None:
        return []
    lines = ["| part | figure | predicted | measured | over |", "|---|---|--:|--:|--:|"]
    for figure in predicted(plan, card):
        if (value := figure.measured(report["parts"])) is not None:
            words = f"{in_words(figure.value)} | {in_words(value)} | {value / figure.value:.2f}"
            lines.append(f"| {figure.part} | {figure.name}, {figure.unit} | {words} |")
    return lines


def assumptions(cards: Sequence[Card]) -> str:
    """The shares of peak throughput and the launch times that the table assumes."""
    shares = ", ".join(f"{card.flops_share} of the peak of an {card.name}" for card in cards)
    return (
        f"Large matrix products reach {shares}, and reads {BANDWIDTH_SHARE} of the bandwidth. "
        f"Kernels in a CUDA graph start {1e6 * KERNEL_GAP_S:g} µs apart; other kernels take "
        f"{1e6 * LAUNCH_S:g} µs of host time each."
    )


def in_words(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def decode_s(
    size: ModelSize,
    card: Card,
    rows: int,
    context: int,
    num_blocks: int,
    *,
    is_recorded: bool = True,
    weight_share: float = 1.0,
) -> float:
    """A decode step of so many sequences with so many tokens each. ``weight_share`` are the bytes
    of the weights of blocks over those of plain ones."""
    read = -(-context // _GRAIN_TOKENS) * _GRAIN_TOKENS
    blocks, head = num_blocks * size.block_bytes(), size.weight_bytes(0)
    cache = _READS * rows * read * size.cached_bytes(num_blocks)
    flops = 2 * rows * size.num_parameters(num_blocks)
    work_s = card.work_s(flops, weight_share * blocks + head) + card.read_s(cache)
    kernels = KERNELS_PER_BLOCK * num_blocks + OTHER_KERNELS
    return card.step_s(work_s, kernels, is_recorded=is_recorded)


def first_round_passes(num_blocks: int) -> int:
    """Block passes of the first round: for each candidate, the blocks behind it."""
    return sum(num_blocks - 1 - block for block in range(1, num_blocks - 1))


def search_passes(num_blocks: int, num_removed: int) -> int:
    """Block passes of a search without shared prefixes: all kept blocks for each candidate, of
    which the first and the last block are none, and once the dense model."""
    rounds = range(num_removed)
    plain = sum((num_blocks - 2 - done) * (num_blocks - 1 - done) for done in rounds)
    return num_blocks + plain


def _steps(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    size = ModelSize.of(plan.shape)
    floor_s = size.weight_bytes(size.num_blocks) / card.bytes_per_s
    yield Figure("steps", "floor", "ms", 1e3 * floor_s, ("rows", 0, "floor_ms"))
    for is_recorded, name, key in (
        (True, "with graphs", "graphs_ms"),
        (False, "without", "one kernel at a time_ms"),
    ):
        for at, rows in enumerate(plan.batch_sizes):
            context = plan.prompt_len + plan.num_steps + 2 * rows
            step_s = decode_s(size, card, rows, context, size.num_blocks, is_recorded=is_recorded)
            yield Figure("steps", f"{rows} sequences {name}", "ms", 1e3 * step_s, ("rows", at, key))


def _tokens_per_s(plan: GpuPlan, card: Card, num_blocks: int) -> float:
    """Of requests that begin at once: their prompts, then a step for each token."""
    size, rows = ModelSize.of(plan.shape), plan.num_requests
    prompt_tokens = rows * plan.prompt_len
    prefills = -(-prompt_tokens // _PREFILL_TOKENS)
    flops = prompt_tokens * num_blocks * size.block_flops(plan.prompt_len)
    prompts_s = max(card.compute_s(flops), prefills * card.read_s(size.weight_bytes(num_blocks)))
    context = plan.prompt_len + plan.output_len // 2
    steps_s = plan.output_len * decode_s(size, card, rows, context, num_blocks)
    return rows * plan.output_len / (prompts_s + steps_s)


def _generate(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    blocks = ModelSize.of(plan.shape).num_blocks
    pace = _tokens_per_s(plan, card, blocks)
    yield Figure("generate", "engine", "tokens/s", pace, ("engine_tokens_per_s",))


def _pruned(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    size = ModelSize.of(plan.shape)
    counts = (size.num_blocks, size.num_blocks - plan.num_removed)
    dense, cut = (_tokens_per_s(plan, card, blocks) for blocks in counts)
    yield Figure("pruned", "generation, pruned over dense", "×", cut / dense, ("generation",))
    yield Figure("pruned", "prompt, dense over pruned", "×", counts[0] / counts[1], ("prompt",))


def _search(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    size = ModelSize.of(plan.shape)
    blocks = size.num_blocks
    for name, share in (("exact", 1.0), ("staged", _staged_share(plan.num_windows))):
        dense_s = _round_s(size, card, plan, blocks, 1)
        candidates = blocks - 2
        round_s = share * _round_s(size, card, plan, first_round_passes(blocks), candidates)
        times = plan.all_windows / plan.num_windows
        yield Figure("search", f"{name}, first round", "s", round_s, (name, "round_s"))
        whole_s = times * (dense_s + plan.num_removed * round_s)
        path = (name, "search_s")
        yield Figure("search", f"{name}, a search at most", "min", whole_s / 60, path)
    plain = search_passes(blocks, plan.num_removed)
    plain_s = _round_s(size, card, plan, plain, 0) * plan.all_windows / plan.num_windows
    yield Figure("search", "without shared prefixes", "min", plain_s / 60, ())


def _round_s(size: ModelSize, card: Card, plan: GpuPlan, passes: int, num_heads: int) -> float:
    """All windows of the benchmark through so many blocks, and through the head so many times."""
    tokens = plan.num_windows * plan.seqlen
    flops = passes * size.block_flops(plan.seqlen) + num_heads * size.head_flops()
    return card.compute_s(tokens * flops)


def _staged_share(num_windows: int) -> float:
    """Of an exact round, where half of the candidates drop out after the first stage."""
    first = stages(num_windows)[0] / num_windows
    return first + (1 - first) / 2


def _int8(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    size = ModelSize.of(plan.shape)
    for at, rows in enumerate(plan.int8_batch_sizes):
        context = plan.prompt_len + plan.num_steps + 2 * rows
        step_s = decode_s(size, card, rows, context, size.num_blocks, weight_share=0.5)
        yield Figure("int8", f"{rows} sequences", "ms", 1e3 * step_s, ("rows", at, "int8_ms"))


def _stream(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    size = ModelSize.of(plan.streamed_shape)
    tokens = plan.num_windows * plan.seqlen
    pass_s = card.compute_s(tokens * size.block_flops(plan.seqlen))
    load_s = size.block_bytes() / card.host_bytes_per_s
    yield Figure("stream", "load of a block", "s", load_s, ("load_s",))
    yield Figure("stream", "pass of all windows", "s", pass_s, ("pass_s",))
    depth = plan.streamed_depth
    whole_s = max(depth * load_s, first_round_passes(depth) * pass_s)
    yield Figure("stream", f"round of {depth} blocks", "min", whole_s / 60, ("whole_round_s",))


def _heal(plan: GpuPlan, card: Card) -> Iterator[Figure]:
    """The dense model forward; the pruned one forward, and backward for hidden states only."""
    size, seqlen = ModelSize.of(plan.shape), plan.heal_seqlen
    kept = size.num_blocks - round(0.2 * size.num_blocks)
    blocks = (size.num_blocks + 2 * kept) * size.block_flops(seqlen)
    flops = blocks + 3 * size.head_flops()
    yield Figure("heal", "training", "tokens/s", 1 / card.compute_s(flops), ("tokens_per_s",))
