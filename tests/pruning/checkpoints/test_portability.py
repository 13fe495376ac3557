"""What vLLM and GGUF files make of pruned models is still what docs/portability.md says."""

import shutil
from pathlib import Path

import pytest

from pruning.models.architectures import ARCHITECTURES
from tests.support.pages import ROOT
from tests.support.portability import UNKNOWN, measured, published
from tools.docs.portability import outcomes

PYTHON = shutil.which(ROOT / "build" / "vllm" / "bin" / "python")
KNOWN = [family for family, each in outcomes().items() if each.vllm != UNKNOWN]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(10_000)]


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_gguf_files_are_written_and_refused_as_the_page_says(family: str, tmp_path: Path) -> None:
    assert published(tmp_path / family, family)["gguf"] == outcomes()[family].gguf


@pytest.mark.skipif(PYTHON is None, reason="vLLM is not installed: make vllm")
def test_vllm_makes_of_every_family_what_the_page_says(tmp_path: Path) -> None:
    assert PYTHON is not None
    found = measured(KNOWN, tmp_path, Path(PYTHON))
    expected = {family: outcomes()[family] for family in KNOWN}
    assert found == expected
