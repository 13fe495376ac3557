"""With every switch of a family's config, the engine generates what ``generate`` does."""

import pytest

from app.engine.engine import Engine
from app.engine.variant import make_variant
from pruning.models.blocks import view
from pruning.repair.folding import folded
from tests.support.engine_requests import PRUNED_BLOCKS, prompt, request, run, variant
from tests.support.quick import slow_but
from tests.support.repairs import methods_of, repaired_by
from tests.support.tiny import SERVED, SWITCHED, generated, tiny_model


@pytest.mark.parametrize(
    "family",
    slow_but(
        [it for it in SWITCHED if it.partition(".")[0] in SERVED],
        *("gpt2.scale_attn_weights", "gpt_neox.use_parallel_residual"),
        *("opt.do_layer_norm_before", "qwen2_moe.norm_topk_prob"),
    ),
)
def test_dense_pruned_and_repaired_models_continue_as_plain_ones(family: str) -> None:
    model = tiny_model(family)
    dense, pruned = variant(family=family), variant(pruned=True, family=family)
    oracles = {dense: dense.model, pruned: pruned.model}
    for method in methods_of(model.config):
        repaired = repaired_by(method, model, PRUNED_BLOCKS)
        served = make_variant("tiny@-2", "tiny", model, PRUNED_BLOCKS, repaired)
        oracles[served] = view(model, PRUNED_BLOCKS, folded(model, PRUNED_BLOCKS, repaired))
    asked = [
        request(prompt(length, seed=length), each, max_new_tokens=10)
        for length in (1, 20)
        for each in oracles
    ]
    outcome = run(Engine(), *asked)
    for each in asked:
        expected = generated(oracles[each.variant], each.prompt_ids, each.params.max_new_tokens)
        assert outcome.of(each) == expected
