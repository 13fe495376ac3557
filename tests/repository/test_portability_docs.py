"""The tables of docs/portability.md are those of the measured outcomes, which know every family."""

from pruning.checkpoints.gguf import FAMILIES
from pruning.models.architectures import ARCHITECTURES
from pruning.models.towers import TOWERS
from tools.docs.portability import EQUAL, TARGET, outcomes, page


def test_the_page_is_up_to_date() -> None:
    text = TARGET.read_text(encoding="utf-8")
    assert page(text) == text, "run make docs"


def test_every_supported_family_has_an_outcome() -> None:
    found = outcomes()
    assert found.keys() == ARCHITECTURES.keys() | TOWERS, "run tests.support.portability for these"
    assert {family for family, each in found.items() if each.gguf == EQUAL} == FAMILIES.keys()
