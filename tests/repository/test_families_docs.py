"""docs/families.md is generated from the rows, and names every family once."""

import re

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pruning.models.architectures import ARCHITECTURES
from pruning.models.towers import TOWERS
from tools.docs.families import REASONS, TARGET, page


def test_the_page_is_up_to_date() -> None:
    assert TARGET.read_text(encoding="utf-8") == page(), "run make docs"


def test_every_language_model_of_transformers_is_on_the_page_once() -> None:
    rows = [line for line in page().splitlines() if line.startswith(("|", "`"))]
    named = re.findall(r"`([\w-]+)`", "\n".join(rows))
    expected = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | ARCHITECTURES.keys() | TOWERS
    assert sorted(named) == sorted(expected)
    known = {family for families in REASONS.values() for family in families}
    assert known <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
