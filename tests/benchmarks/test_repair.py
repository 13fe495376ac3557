"""The benchmark of repair runs, on a tiny model; its figures mean nothing."""

import json
import random
from pathlib import Path

import pytest
import typer

from benchmarks.repair import main


def written(path: Path, seed: int, num_words: int = 800) -> str:
    generator = random.Random(seed)
    words = (str(generator.randrange(1000)) for _ in range(num_words))
    path.write_text(" ".join(words), encoding="utf-8")
    return str(path)


def test_every_method_is_judged_on_other_text_by_domain(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    train = [f"{name}={written(tmp_path / name, at)}" for at, name in enumerate(["a", "b"])]
    held_out = [f"c={written(tmp_path / 'c', 7)}", *train]
    sizes = {"num_train": 6, "num_selection": 2, "num_held_out": 3, "seqlen": 16}
    out = tmp_path / "repair.json"
    main(out, train, held_out, "2,3", str(tiny_model_dir), depths="1,2", **sizes)
    report = json.loads(out.read_text())
    assert report["held_out"] == {"c": [3, 16], "a": [3, 16], "b": [3, 16]}
    for number, depth in enumerate(report["depths"], start=1):
        assert depth["num_removed"] == number
        assert list(depth["methods"]) == ["none", "scale", "ridge"]
        assert depth["auto"] in depth["methods"]
        raw = depth["methods"]["none"]["domains"]
        for found in depth["methods"].values():
            for domain, measured in found["domains"].items():
                lost = raw[domain]["loss"] - report["dense"][domain]["loss"]
                back = raw[domain]["loss"] - measured["loss"]
                assert measured["came_back"] == pytest.approx(back / lost)
    assert out.with_suffix(".png").stat().st_size > 0
    assert "came back" in out.with_suffix(".md").read_text()


def test_a_text_that_is_too_short_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    text = [f"a={written(tmp_path / 'a', 0, num_words=20)}"]
    with pytest.raises(typer.BadParameter, match="windows of 512 tokens, and 40 are needed"):
        main(tmp_path / "repair.json", text, text, "2", str(tiny_model_dir))
