"""Text that a model writes, at once or in batches."""

import pytest
import torch

from pruning.data import model_text
from pruning.data.model_text import sampled_text
from tests.support.tiny import tiny_model


def test_windows_are_sampled_in_batches_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model("llama"), list[tuple[int, int]]()
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    window = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * 12 * 4
    at_once = sampled_text(model, 5, 12, 3, lambda *_: None)
    monkeypatch.setattr(model_text, "SAMPLING_CACHE_BYTES", 2 * window)
    sampled = sampled_text(model, 5, 12, 3, lambda *done: seen.append(done))
    assert sampled.shape == at_once.shape == (5, 12)
    assert seen[-1] == (36, 36)
    assert len(seen) == 3 * 11
    assert seen == sorted(seen)
    assert len({tuple(row) for row in sampled.tolist()}) == 5  # each batch goes on with the seed
    assert torch.equal(sampled, sampled_text(model, 5, 12, 3, lambda *_: None))
