"""Sample texts are what transformers generates greedily, and stand on the card."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning.checkpoints.card import model_card
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import Quality
from pruning.evaluation.results import Sample
from pruning.evaluation.samples import LIMIT_S, MAX_NEW_TOKENS, PROMPTS, sample_texts
from pruning.models.blocks import view
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.prune import Resident
from tests.support.clock import Clock
from tests.support.pruning_runs import RUN, removals_of_run

KEEP = (0, 2, 3, 5)


@pytest.fixture(autouse=True)
def _whole_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as in a real run; other tests write shorter ones."""
    monkeypatch.setattr("pruning.evaluation.samples.MAX_NEW_TOKENS", MAX_NEW_TOKENS)


@pytest.fixture
def dense(tiny_models_dir: Path) -> DenseModel:
    return load_dense_model(tiny_models_dir / "tiny", Resident.MODEL, Resources(), dtype="float32")


def test_both_continue_greedily(dense: DenseModel) -> None:
    samples = sample_texts(dense, PrunedModel(KEEP))
    assert [sample.prompt for sample in samples] == list(PROMPTS)
    models = {"dense": dense.model, "pruned": view(dense.model, KEEP)}
    for sample in samples:
        ids = torch.tensor([dense.tokenizer(sample.prompt).input_ids])
        for side, model in models.items():
            new = ids
            for _ in range(MAX_NEW_TOKENS):
                token = model(new).logits[:, -1].argmax(dim=-1, keepdim=True)
                new = torch.cat([new, token], dim=1)
            text = str(dense.tokenizer.decode(new[0, ids.shape[1] :]))
            text = text.partition(dense.tokenizer.eos_token or "\0")[0]
            assert getattr(sample, side) == text
    assert any(sample.dense != sample.pruned for sample in samples)


def test_a_slow_model_writes_less_and_a_streamed_one_nothing(
    dense: DenseModel, tiny_models_dir: Path
) -> None:
    clock = Clock()

    def ticking() -> float:
        clock.now += LIMIT_S / 4
        return clock()

    whole = sample_texts(dense, PrunedModel(KEEP))
    cut = sample_texts(dense, PrunedModel(KEEP), ticking)
    assert all(0 < len(one.dense) < len(other.dense) for one, other in zip(cut, whole, strict=True))
    streamed = load_dense_model(tiny_models_dir / "tiny", Resident.STREAM, Resources())
    assert sample_texts(streamed, PrunedModel(KEEP)) == ()


def test_the_card_has_them_as_text() -> None:
    sample = Sample("The sea", " is\n# blue", "\x1b[1m `is`")
    quality = replace(RUN.quality, samples=(sample,))
    card = model_card(replace(RUN, quality=quality), removals_of_run(is_staged=False))
    assert "    dense:  is # blue\n    pruned: [1m `is`\n" in card
    assert "Sample texts" not in model_card(RUN, removals_of_run(is_staged=False))
    assert Quality.from_dict({**_as_json(quality)}).samples == (sample,)


def _as_json(quality: Quality) -> dict[str, object]:
    samples = [
        {"prompt": one.prompt, "dense": one.dense, "pruned": one.pruned} for one in quality.samples
    ]
    return {
        "losses": quality.losses,
        "perplexities": quality.perplexities,
        "evaluated_on": quality.evaluated_on,
        "samples": samples,
    }
