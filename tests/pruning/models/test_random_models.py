"""Random models have the sizes of the published checkpoints."""

import pytest

from pruning.models.blocks import num_blocks
from pruning.models.random_models import SHAPES, UnknownShape, random_model
from pruning.models.store import num_parameters

PUBLISHED = {
    "tinyllama-1.1b": 1_100_048_384,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "opt-6.7b": 6_658_473_984,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_the_published_sizes(shape: str) -> None:
    model = random_model(shape, "bfloat16", device="meta")
    assert num_parameters(model) == PUBLISHED[shape]
    assert num_blocks(model) == SHAPES[shape]["num_hidden_layers"]


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownShape, match="'llama-3': expected one of tinyllama"):
        random_model("llama-3", "bfloat16")
