"""The chunked divergence and its gradient are those of the plain formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.healing import divergence
from pruning.healing.divergence import divergences, hidden_error
from pruning.models.blocks import final_logits
from tests.support.tiny import tiny_model

FAMILIES = ("llama", "gemma2")  # gemma2 caps its logits


@settings(max_examples=25)
@given(
    family=st.sampled_from(FAMILIES),
    num_rows=st.integers(1, 9),
    per_chunk=st.integers(1, 10),
    spread=st.floats(0.01, 4.0),
    seed=st.integers(0, 2**16),
)
def test_it_is_the_plain_formula(
    family: str, num_rows: int, per_chunk: int, spread: float, seed: int
) -> None:
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(seed)
    hidden, dense = torch.randn(2, num_rows, model.config.hidden_size, generator=generator) * spread
    hidden.requires_grad_()
    wanted = final_logits(model, dense).float().log_softmax(dim=1)
    found = final_logits(model, hidden).float().log_softmax(dim=1)
    plain = torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    [expected] = torch.autograd.grad(3 * plain, hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "rows_per_chunk", lambda *_: per_chunk)
        patch.setattr(divergence, "_LEAST_ROWS", 1)
        chunked = divergences(model, [hidden], dense)[0]
        [gradient] = torch.autograd.grad(3 * chunked, hidden)
    torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_equal_states_have_no_divergence_and_no_gradient() -> None:
    model = tiny_model("llama")
    hidden = torch.randn(5, model.config.hidden_size)
    leaf = hidden.clone().requires_grad_()
    nats = divergences(model, [leaf], hidden)[0]
    [gradient] = torch.autograd.grad(nats, leaf)
    assert abs(float(nats.detach())) < 1e-6
    assert float(gradient.abs().max()) < 1e-6


def test_logits_of_few_rows_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    monkeypatch.setattr(divergence, "rows_per_chunk", lambda *_: 3)
    monkeypatch.setattr(divergence, "_LEAST_ROWS", 2)
    sizes = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _m, _a, logits: sizes.append(len(logits)))
    try:
        hidden = torch.randn(10, model.config.hidden_size, requires_grad=True)
        divergences(model, [hidden], hidden.detach())
    finally:
        hook.remove()
    assert max(sizes) == 3
    assert sum(sizes) == 2 * 10


def test_the_error_of_hidden_states_is_a_share_of_the_dense_square() -> None:
    dense = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    hidden = torch.tensor([[3.0, 9.0], [0.0, 2.0]])
    assert float(hidden_error(hidden, dense)) == pytest.approx(0.5 * 25 / 25)
