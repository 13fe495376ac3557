"""The scripts of ``examples/`` as a reader runs them, against `sleb up` with a tiny model."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.support.processes import sleb_up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def url(data_dir: Path) -> Iterator[str]:
    with sleb_up(data_dir) as url:
        yield url


def said(script: str, *arguments: str, expected: int = 0) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == expected, ran.stderr
    return ran.stdout + ran.stderr


def test_each_does_what_it_says(url: str, data_dir: Path) -> None:
    pruned = said("prune_and_serve.py", "tiny", "--num-remove", "2", "--url", url)
    assert re.search(r"the pruned model is tiny@prn-\w+", pruned)
    assert pruned.count("The sea is") == 2

    lenient = said("choose_depth.py", "tiny", "--tpot-ms", "60000", "--url", url)
    assert "take tiny;" in lenient
    strict = said("choose_depth.py", "tiny", "--tpot-ms", "0", "--url", url, expected=1)
    assert [line.partition(":")[0] for line in strict.splitlines()[:3]] == [
        "tiny",
        "tiny@-1",
        "tiny@-2",
    ]
    assert "no depth keeps the promise" in strict

    (data_dir / "texts").mkdir()
    text = "the dog sleeps and the fox jumps over the lazy dog. " * 3000
    (data_dir / "texts" / "notes.txt").write_text(text)
    options = ("--num-remove", "1", "--num-tokens", "1000", "--seqlen", "16", "--url", url)
    healed = said("heal_for_your_text.py", "tiny", "notes.txt", *options)
    assert re.search(r"healed model: tiny@prn-\w+\+healed", healed)
    assert re.search(r"healed \d+\.\d\d \(pruned \d", healed)
