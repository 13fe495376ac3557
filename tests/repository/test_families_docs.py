"""The pages of families are generated from the rows, and name every family once."""

import re
from pathlib import Path

import pytest
from transformers import __version__
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pruning.models.architectures import ARCHITECTURES
from pruning.models.towers import TOWERS
from tools.docs import families, unsupported_families

_MAX_LINES, _MAX_COLUMNS = 52, 100  # of a screen


def names_in(page: str) -> list[str]:
    rows = [line for line in page.splitlines() if line.startswith("|")]
    return [name for span in re.findall(r"`([\w -]+)`", "\n".join(rows)) for name in span.split()]


def test_the_pages_are_up_to_date() -> None:
    for each in (families, unsupported_families):
        assert each.TARGET.read_text(encoding="utf-8") == each.page(), "run make docs"


def test_supported_families_are_on_one_screen() -> None:
    page = families.page()
    assert sorted(names_in(page)) == sorted(ARCHITECTURES.keys() | TOWERS)
    lines = page.splitlines()
    assert len(lines) <= _MAX_LINES
    assert max(map(len, lines)) <= _MAX_COLUMNS


def is_locked() -> bool:
    """Whether transformers has the version of the image: a newer one has more families."""
    lock = Path(__file__).parents[2] / "requirements.lock"
    return f"transformers=={__version__} " in lock.read_text(encoding="utf-8")


@pytest.mark.skipif(not is_locked(), reason="another version of transformers than the image has")
def test_every_other_language_model_of_transformers_is_on_the_other_page_once() -> None:
    named = names_in(unsupported_families.page())
    others = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - ARCHITECTURES.keys() - TOWERS
    assert sorted(named) == sorted(others)
    known = {family for names in unsupported_families.REASONS.values() for family in names}
    assert known <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
