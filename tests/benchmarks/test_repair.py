"""The benchmark of repair runs, on a tiny model; its figures mean nothing."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.repair import main

SIZES: dict[str, Any] = {"num_samples": 4, "num_held_out": 2, "seqlen": 16}


def written(path: Path, seed: int, num_words: int = 800) -> Path:
    generator = random.Random(seed)
    words = (str(generator.randrange(1000)) for _ in range(num_words))
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def test_every_method_is_judged_on_other_text_by_domain_and_order(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    texts = [written(tmp_path / f"{name}.txt", at) for at, name in enumerate(["a", "b"])]
    out, orders = tmp_path / "repair.json", ["sleb", "one_shot", "mine=1,3"]
    main(out, orders, texts, str(tiny_model_dir), depths="1,2", **SIZES)
    report = json.loads(out.read_text())
    assert list(report["train"]) == ["a", "b"]
    assert {"a", "b", "documentation"} <= report["held_out"].keys()
    assert list(report["orders"]) == ["sleb", "one_shot", "mine"]
    assert [bool(order["search"]) for order in report["orders"].values()] == [True] * 2 + [False]
    for order in report["orders"].values():
        for number, depth in enumerate(order["depths"], start=1):
            assert depth["num_removed"] == number
            assert list(depth["methods"]) == ["none", "ridge"]
            assert depth["auto"] in depth["methods"]
            raw = depth["methods"]["none"]["domains"]
            for found in depth["methods"].values():
                for domain, measured in found["domains"].items():
                    lost = raw[domain]["loss"] - report["dense"][domain]["loss"]
                    back = raw[domain]["loss"] - measured["loss"]
                    assert measured["came_back"] == pytest.approx(back / lost)
    table = out.with_suffix(".md").read_text()
    assert "## sleb" in table
    assert "% of the" in table


def test_packaged_text_needs_no_files(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "repair.json"
    main(out, ["sleb=2"], model=str(tiny_model_dir), depths="1", **SIZES)
    report = json.loads(out.read_text())
    assert list(report["train"]) == ["prose", "code"]
    assert report["held_out"].keys() == {"prose", "code", "documentation"}


def test_an_order_that_is_too_short_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="has 1 blocks, and 2 are to be removed"):
        main(tmp_path / "repair.json", ["a=2"], model=str(tiny_model_dir), depths="1,2")
    with pytest.raises(
        typer.BadParameter, match="expected cosine, one_shot, sleb, kl, or NAME=14,26"
    ):
        main(tmp_path / "repair.json", ["2,3"], model=str(tiny_model_dir), depths="1,2")
