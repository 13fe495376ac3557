"""Quality of the demo model: perplexity against a direct computation, and the probe."""

from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch.nn import functional as F

from pruning.data.texts import text_windows
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.probe import Item, digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.results import ItemResult, compare
from pruning.models.blocks import num_blocks, view
from pruning.models.forward import InMemoryForward
from pruning.models.quantize import quantized
from pruning.models.store import LoadedModel, load
from pruning.spec.prune import Quantize

TEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2-test.txt"
NUM_TOKENS = 4096
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def demo(demo_model_dir: Path) -> LoadedModel:
    return load(demo_model_dir, dtype="float32")


@pytest.fixture(scope="module")
def texts_dir() -> Path:
    if not TEXT.is_file():
        pytest.skip("the text lies beside the project, not in it")
    return TEXT.parent


@torch.inference_mode()
def by_hand(loaded: LoadedModel, seqlen: int, num_windows: int) -> float:
    """Perplexity of the rows joined by blank lines, computed window by window."""
    rows = TEXT.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    text = "\n\n".join(f"{row}\n" if row.strip() else "" for row in rows)
    ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    nats = []
    for window in ids[: seqlen * num_windows].view(num_windows, seqlen):
        logits = loaded.model(window.unsqueeze(0)).logits[0, :-1]
        nats.append(F.cross_entropy(logits.double(), window[1:]).item())
    return exp(fmean(nats))


@pytest.mark.parametrize("seqlen", [512, 2048])
def test_perplexity_is_that_of_a_loop(demo: LoadedModel, texts_dir: Path, seqlen: int) -> None:
    num_windows = NUM_TOKENS // seqlen
    windows = text_windows(
        "wikitext2", texts_dir, demo.model, demo.tokenizer, seqlen=seqlen, num_windows=num_windows
    )
    found = measure_perplexity(InMemoryForward(demo.model), windows)
    assert found.num_windows == num_windows
    assert found.perplexity == pytest.approx(by_hand(demo, seqlen, num_windows), rel=1e-4)


def test_the_probe_tells_dense_from_half_the_blocks_and_says_the_same_twice(
    demo_model_dir: Path,
) -> None:
    """15 consecutive of 30 blocks are removed. Every eighth question is asked twice."""
    demo, items = load(demo_model_dir), probe_items()
    depth = num_blocks(demo.model)

    def ask(keep: Sequence[int], some: Sequence[Item]) -> list[ItemResult]:
        return answer(InMemoryForward(view(demo.model, keep)), demo.tokenizer, some)

    dense, half = range(depth), [*range(8), *range(23, depth)]
    assert len(half) == depth - 15
    found = compare(ask(dense, items), ask(half, items), digest(items))
    assert found.drop > 5 * found.standard_error, found
    assert found.drop > 0.3
    for keep in (dense, half):
        assert ask(keep, items[::8]) == ask(keep, items[::8])


def test_eight_bits_cost_next_to_nothing_and_four_bits_more(
    demo: LoadedModel, texts_dir: Path
) -> None:
    keep = [block for block in range(num_blocks(demo.model)) if block not in (13, 14, 17)]
    pruned = view(demo.model, keep)
    windows = text_windows(
        "wikitext2", texts_dir, demo.model, demo.tokenizer, seqlen=512, num_windows=4
    )
    models = pruned, *(quantized(pruned, weights) for weights in (Quantize.INT8, Quantize.INT4))
    plain, int8, int4 = (
        measure_perplexity(InMemoryForward(model), windows).perplexity for model in models
    )
    assert int8 == pytest.approx(plain, rel=0.02)
    assert plain < int4 < 4 * plain
