import pytest

from app.engine.engine import Engine
from app.engine.variant import make_variant
from tests.support.engine_requests import prompt, request, run
from tests.support.tiny import generated, tiny_model


@pytest.mark.parametrize("keep", [(0, 2, 4), (1, 3, 5)], ids=["sliding only", "full only"])
def test_a_view_may_keep_one_kind_of_block_only(keep: tuple[int, ...]) -> None:
    pruned = make_variant("tiny@-3", "tiny", tiny_model("gemma2"), keep)
    each = request(prompt(20), pruned, max_new_tokens=8)
    assert run(Engine(), each).of(each) == generated(pruned.model, each.prompt_ids, 8)
