import copy

import pytest

from app.engine.variant import make_variant
from tests.support.tiny import EOS, MAX_POSITIONS, NUM_BLOCKS, tiny_model


def test_the_dense_variant_is_the_model_itself() -> None:
    model = tiny_model("llama")
    variant = make_variant("tiny", "tiny", model)
    assert variant.model is model
    assert variant.keep == tuple(range(NUM_BLOCKS))
    assert variant.max_model_len == MAX_POSITIONS


def test_a_pruned_variant_has_fewer_blocks_over_the_same_weights() -> None:
    model = tiny_model("llama")
    variant = make_variant("tiny@-2", "tiny", model, [0, 1, 3, 5])
    assert variant.model.config.num_hidden_layers == 4
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in variant.model.parameters()} <= addresses


@pytest.mark.parametrize("keep", [[], [3, 1], [0, 0], [0, NUM_BLOCKS], [-1, 0]])
def test_blocks_that_are_none_are_refused(keep: list[int]) -> None:
    with pytest.raises(ValueError, match="must be ascending indices"):
        make_variant("tiny@x", "tiny", tiny_model("llama"), keep)


def test_two_variants_of_one_name_are_not_the_same() -> None:
    model = tiny_model("llama")
    assert make_variant("tiny", "tiny", model) != make_variant("tiny", "tiny", model)


@pytest.mark.parametrize(
    ("eos", "expected"), [(None, {EOS}), (7, {7}), ([7, 9], {7, 9})], ids=["config", "one", "list"]
)
def test_end_of_sequence_is_what_generate_would_use(
    eos: int | list[int] | None, expected: set[int]
) -> None:
    model = copy.copy(tiny_model("llama"))
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.eos_token_id = eos
    assert make_variant("tiny", "tiny", model).eos_token_ids == expected


@pytest.mark.parametrize("is_by_kind", [False, True])
def test_longrope_ends_where_its_second_set_of_frequencies_would_begin(is_by_kind: bool) -> None:
    model = copy.copy(tiny_model("phi3"))
    model.config = copy.deepcopy(model.config)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    default = {"rope_type": "default", "rope_theta": 10000.0}
    by_kind = {"full_attention": rope, "sliding_attention": default}
    model.config.rope_parameters = by_kind if is_by_kind else rope
    assert make_variant("tiny", "tiny", model).max_model_len == 32
