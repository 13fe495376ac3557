"""The card of a checkpoint shows its trajectory and how it was found."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pruning.checkpoints.card import Exported, QuantizedText, export_card, model_card
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.evaluation.quality import Interval
from pruning.evaluation.results import ItemResult, Kind, compare
from pruning.models.demo_model import ORIGIN
from pruning.models.lineage import ORIGIN_FILE, Lineage, Provenance, added_at, lineage_of
from pruning.repair.record import DepthRepair, Method
from pruning.spec.prune import Metric, Quantize, Resident, Search
from tests.support.pruning_runs import RUN, manifest_of, removals_of_run

RIGHT, HALF = (ItemResult(Kind.CODE, True, written) for written in (True, False))
WRONG = ItemResult(Kind.CODE, False, False)
PROBE = compare([RIGHT, RIGHT], [HALF, WRONG], "d1g")  # the pruned model has a quarter


def test_the_card_shows_the_plot_and_the_table() -> None:
    card = model_card(RUN, removals_of_run(is_staged=False))
    lines = card.splitlines()
    head = lines.index("| blocks | removed | loss | perplexity | × dense | margin |")
    assert lines[head + 1] == "|" + " --: |" * 6
    assert lines[head + 2] == "| 6 | - | 4.0000 | 50.00 | 1.00 | - |"
    assert lines[head + 3] == "| 5 | 3 | 4.2500 | 60.00 | 1.20 | 0.1000 ± 0.0577, a tie |"
    assert lines[head + 5] == ""
    assert f"]({PLOT_FILE})" in card
    assert "tiny without 2 of its 6 transformer blocks" in card
    assert "- perplexity: on held-out text, some text, 4 windows" in card
    assert "Search: exact, every candidate" in card
    assert "`d1g`" in card


def test_the_card_says_how_the_search_was_made() -> None:
    search, resident = Search.STAGED, Resident.STREAM
    manifest = manifest_of(6, (3,), (4.0, 4.25), search=search, resident=resident)
    card = model_card(manifest, removals_of_run(is_staged=True))
    assert "Search: staged, candidates that were clearly worse" in card
    assert "streamed from disk" in card
    assert "2 of 4" in card
    assert "{" not in card


@pytest.mark.parametrize(
    ("metric", "chosen", "margin"),
    [
        (Metric.COSINE, "the cosine similarity of their input and output", "as 1 - cosine"),
        (
            Metric.ONE_SHOT,
            "the loss of the dense model without each of them",
            "how much higher the dense model's",
        ),
        (Metric.SLEB, "SLEB", "how much higher the loss is without"),
    ],
)
def test_the_card_says_by_which_metric(metric: Metric, chosen: str, margin: str) -> None:
    manifest = manifest_of(6, (3, 1), (4.0, 4.25, 5.0), metric=metric)
    card = model_card(manifest, removals_of_run(is_staged=False))
    assert f"chosen by {chosen}\n(arXiv 2402.09025)" in card
    assert margin in card


def test_the_card_says_where_the_parent_is_from_and_what_may_be_done_with_it() -> None:
    said = Provenance("apache-2.0")
    card = model_card(RUN, (), Lineage("org/tiny", "c0ffee", said, has_licence_text=True))
    head = card.split("---\n")[1]
    assert "base_model: org/tiny\n" in head
    assert "license: apache-2.0\n" in head
    assert "- Parent: tiny, from org/tiny at commit c0ffee, with 6 blocks." in card
    assert "- Removed blocks, counted from 0, in order of removal: 3, 1." in card
    assert "- The licence is that of tiny (apache-2.0), see LICENSE." in card


def test_what_is_not_known_is_left_out() -> None:
    card = model_card(RUN)
    assert "base_model: tiny\n" in card
    assert "license:" not in card
    assert "- Parent: tiny, with 6 blocks." in card
    assert "- The licence is that of tiny." in card
    assert "{" not in card


def test_a_card_says_how_to_load_it_elsewhere() -> None:
    exported = export_card(Exported("tiny@-1", "tiny", 6, (), "float16"), Lineage())
    for card in (model_card(RUN), exported):
        assert "AutoModelForCausalLM.from_pretrained" in card
        assert "`vllm serve path/to/this/directory`" in card
        assert "--gguf model.gguf" in card
    assert "tiny with all of its 6 transformer blocks, in float16." in exported
    assert "all weights have the parent's values" in exported
    assert "Removed blocks" not in exported


@pytest.mark.parametrize(
    ("method", "said", "changed"),
    [
        (Method.NONE, "and otherwise unchanged", "all weights have the parent's values"),
        (Method.SCALE, "and repaired by scales", "add to the hidden states was multiplied"),
        (Method.RIDGE, "and repaired by least squares", "matrices of the blocks in front"),
    ],
)
def test_a_card_says_what_a_repair_has_changed(method: Method, said: str, changed: str) -> None:
    depths = (DepthRepair(1, Method.NONE, 0, {}), DepthRepair(2, method, 8, {}))
    published = model_card(replace(RUN, repair=depths))
    assert said in " ".join(published.split())
    exported = export_card(Exported("tiny@-1", "tiny", 6, (3,), "float16", method), Lineage())
    for card in (published, exported):
        assert changed in card


def test_lineage_is_what_the_directory_says(tmp_path: Path) -> None:
    assert lineage_of(tmp_path) == Lineage()
    (tmp_path / "LICENSE").write_text("do as you like")
    (tmp_path / "README.md").write_text(
        "---\ntags: [x]\nlicense: mit\nlanguage: en\ndatasets: [org/texts, org/more]\n---\n"
        "license: none\n"
    )
    origin = {"source": "org/tiny", "commit": "c0ffee", "revision": None, "added_at": 1.0}
    (tmp_path / "sleb-origin.json").write_text(json.dumps(origin))
    said = Provenance("mit", languages=("en",), datasets=("org/texts", "org/more"))
    assert lineage_of(tmp_path) == Lineage("org/tiny", "c0ffee", said, has_licence_text=True)


def test_the_card_of_the_demo_model_names_source_conversion_and_licence(tmp_path: Path) -> None:
    (tmp_path / ORIGIN_FILE).write_text(json.dumps(ORIGIN))
    card = model_card(RUN, (), lineage_of(tmp_path))
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct\n" in card
    assert "license: apache-2.0\n" in card
    assert "language:\n- en\n" in card
    assert "from HuggingFaceTB/SmolLM2-135M-Instruct, dequantized from Q4_1, as the" in card
    assert "The licence is that of tiny (apache-2.0)." in card


@pytest.mark.parametrize(
    "card",
    [
        "license: mit",
        "---\nlicense: {a: b}\nlanguage: 3\ndatasets: [4]\n---\n",
        "---\nx: 1\n---\n",
        "---\n- x\n---\n",
        "---\nx: [\n---\n",
        "---\nlicense: 'a b\n  c: d'\n---\n",
    ],
)
@pytest.mark.parametrize(
    "origin",
    [
        "{",
        "[]",
        '{"source": "/home/me/tiny", "commit": null}',
        '{"source": "/home/me/tiny.gguf", "base_models": ["a file.gguf", 5], "licence": ["\\n"]}',
    ],
)
def test_what_cannot_be_told_is_not_guessed(tmp_path: Path, card: str, origin: str) -> None:
    """And a directory that was copied is not named."""
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "sleb-origin.json").write_text(origin)
    assert lineage_of(tmp_path) == Lineage()


def test_the_metadata_is_what_the_hub_reads() -> None:
    """Its library parses it, with every value that was measured."""
    said = Provenance(
        "other", "Tiny: licence", "LICENSE", languages=("en", "no"), datasets=("o/t",)
    )
    manifest = replace(RUN, quality=replace(RUN.quality, probe=PROBE))
    data: Any = ModelCard(model_card(manifest, (), Lineage("org/tiny", "c0ffee", said))).data
    assert (data.base_model, data.license, data.license_name) == (
        "org/tiny",
        "other",
        said.licence_name,
    )
    assert (data.language, data.datasets) == (["en", "no"], ["o/t"])
    assert data.model_name == manifest.name
    found = {(one.dataset_type, one.metric_type): one for one in data.eval_results}
    assert found["text", "perplexity"].metric_value == RUN.quality.perplexities[-1]
    assert found["text", "perplexity"].dataset_name == RUN.quality.evaluated_on
    assert found["probe", "accuracy"].metric_value == 0.25
    assert {one.task_type for one in found.values()} == {"text-generation"}


def test_the_metadata_of_a_quantized_export_is_of_its_files() -> None:
    text = QuantizedText("prose", "some prose", 20.0, 29.6, Interval(1.48, 1.4, 1.5))
    exported = Exported("tiny", "tiny", 6, (), "float16", quantized=Quantize.INT4)
    plain: Any = ModelCard(export_card(exported, Lineage())).data
    assert plain.eval_results is None
    data: Any = ModelCard(export_card(replace(exported, perplexities=[text]), Lineage())).data
    assert [one.metric_value for one in data.eval_results] == [29.6, 1.48]
    assert data.eval_results[1].metric_name == "ratio of perplexity to plain weights"


def test_a_model_came_when_its_origin_says_or_its_config_was_written(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    os.utime(config, (0, 1000))
    for origin in ('{"added_at": null}', '{"added_at": NaN}', "{"):
        (tmp_path / ORIGIN_FILE).write_text(origin)
        assert added_at(tmp_path) == 1000
    (tmp_path / ORIGIN_FILE).write_text('{"added_at": 2000.5}')
    assert added_at(tmp_path) == 2000.5
