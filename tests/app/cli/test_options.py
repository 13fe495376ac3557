"""The options for calibration texts, and the agreement of all options with the spec."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.cli.options import (
    HEAL,
    HEAL_HELP,
    calibration_of,
    check_texts_here,
    heal_from,
    ratios_by_domain,
    spec_of,
    with_options,
)
from app.cli.prune import heal, prune
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationMix, CalibrationSpec, Dataset, Sampling
from pruning.spec.evaluation import Evaluation, Gate
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec


def parsed(*texts: str) -> CalibrationSpec | CalibrationMix:
    return calibration_of(
        texts, {"sampling": Sampling.ROWS, "num_samples": 9, "seqlen": 32, "seed": 5}
    )


@pytest.mark.parametrize(
    ("text", "dataset", "path"),
    [
        ("self", Dataset.SELF, None),
        ("c4", Dataset.C4, None),
        ("a.txt", Dataset.FILE, "a.txt"),
        ("file", Dataset.FILE, "file"),
        ("a.txt=2", Dataset.FILE, "a.txt"),
        ("a=b.txt", Dataset.FILE, "a=b.txt"),
        ("a=1=1", Dataset.FILE, "a=1"),
        ("=2", Dataset.FILE, "=2"),
    ],
)
def test_one_text_is_no_mix_whatever_its_weight(
    text: str, dataset: Dataset, path: str | None
) -> None:
    assert parsed(text) == CalibrationSpec(dataset, Sampling.ROWS, 9, 32, 5, path)


def test_several_are_mixed_by_weight_which_is_one_where_none_is_given() -> None:
    mix = parsed("a.txt", "self=2.5")
    assert isinstance(mix, CalibrationMix)
    assert mix.weights == (1.0, 2.5)
    assert mix.sources == (parsed("a.txt"), parsed("self"))


@pytest.mark.parametrize(
    "texts", [["a.txt=0"], ["a.txt=-1"], ["a.txt", "self=nan"], ["a=inf"], ["self", "self"]]
)
def test_what_cannot_be_mixed_is_refused(texts: Sequence[str]) -> None:
    with pytest.raises(InvalidSpec):
        parsed(*texts)


def test_a_ratio_belongs_to_a_domain() -> None:
    assert ratios_by_domain(["code=1.5", "a=b=2"]) == {"code": 1.5, "a=b": 2.0}
    for wrong in ("code", "code=", "code=x", "=1.5"):
        with pytest.raises(InvalidSpec, match="expected DOMAIN=RATIO"):
            ratios_by_domain([wrong])


def test_prune_has_an_option_for_every_field_of_the_spec() -> None:
    nested = {"calibration", "gate", "evaluation"}  # one option for each of their fields
    nested |= {"heal"}  # a command of its own
    nested |= {"removed"}  # of older releases
    expected = {field.name for field in fields(PruneSpec)} - nested
    expected |= {field.name for field in fields(CalibrationSpec)} - {"dataset", "path"}
    expected |= {f"gate_{field.name}" for field in fields(Gate)}
    expected |= {f"evaluation_{field.name}" for field in fields(Evaluation)}
    own = {"model", "out", "calibration", "state_budget", "actors", "overwrite", "as_json"}
    own |= {"task_data"}  # a folder of this machine
    assert set(inspect.signature(prune).parameters) - own == expected - {"model"}


def test_heal_has_an_option_for_every_field() -> None:
    parameters = dict(inspect.signature(heal).parameters)
    for name in ("checkpoint", "out", "overwrite", "as_json"):
        del parameters[name]
    defaults = {field.name: field.default for field in fields(Heal)}
    assert {name: each.default for name, each in parameters.items()} == defaults


def test_an_option_that_is_not_given_has_the_default_of_the_spec() -> None:
    defaults = {name: each.default for name, each in inspect.signature(prune).parameters.items()}
    asked = {**defaults, "num_remove": 2, "tasks": (), "gate_max_perplexity_ratio_of": {}}
    texts = defaults["calibration"]
    calibration = calibration_of(texts, defaults)
    assert spec_of("m", calibration, asked) == PruneSpec("m", num_remove=2)
    limited = spec_of("m", calibration, {**asked, "gate_max_probe_drop": 0.1})
    assert limited.gate == Gate(max_probe_drop=0.1)
    measured = spec_of("m", calibration, {**asked, "evaluation_num_samples": 7})
    assert measured.evaluation == Evaluation(num_samples=7)
    with pytest.raises(InvalidSpec, match="--evaluation-margin=2: expected a fraction"):
        spec_of("m", calibration, {**asked, "evaluation_margin": 2})


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "expected exactly one of num_remove, sparsity",
            "expected exactly one of --num-remove, --sparsity",
        ),
        (
            "search=staged cannot: choose search=exact",
            "--search=staged cannot: choose --search=exact",
        ),
        ("heal.rank=0: no_option stays", "heal.rank=0: no_option stays"),
        ("a search is a search", "a search is a search"),
    ],
)
def test_a_message_about_fields_names_the_options(message: str, shown: str) -> None:
    assert with_options(message) == shown


@pytest.mark.parametrize(
    ("limits", "option"),
    [
        ({"max_probe_drop": 2.0}, "--gate-max-probe-drop=2.0: "),
        ({"max_perplexity_ratio": 0.9}, "--gate-max-perplexity-ratio=0.9: "),
        ({"max_perplexity_ratio_of": {"code": 0.5}}, "--gate-max-perplexity-ratio-of code=0.5: "),
    ],
)
def test_a_refused_limit_of_the_gate_names_its_own_option(
    limits: dict[str, object], option: str
) -> None:
    values = {"num_remove": 1, **{f"gate_{name}": limit for name, limit in limits.items()}}
    with pytest.raises(InvalidSpec) as refused:
        spec_of("m", parsed("self"), values)
    assert with_options(str(refused.value)).startswith(option)


@pytest.mark.parametrize(
    ("prefix", "option"), [("", "--batch-tokens"), (HEAL, "--heal-batch-tokens")]
)
def test_a_refused_setting_of_a_healing_names_its_option(prefix: str, option: str) -> None:
    values = {prefix + name: getattr(Heal, name) for name in HEAL_HELP}
    with pytest.raises(InvalidSpec) as refused:
        heal_from({**values, f"{prefix}batch_tokens": 0}, prefix)
    assert with_options(str(refused.value)).startswith(f"{option}=0: expected ")


def test_prune_writes_beside_where_it_runs_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places: list[object] = []
    monkeypatch.setattr(
        "app.commands.prune.run_prune", lambda _spec, out, *_, **__: places.append(out)
    )
    for arguments in (["org/tiny"], ["tiny", "--out", "there"]):
        ran = CliRunner().invoke(command_line, ["prune", *arguments, "--num-remove", "1"])
        assert ran.exit_code == 0, ran.output
    assert places == [Path("tiny-pruned"), Path("there")]


def test_a_text_that_is_neither_a_data_set_nor_a_file_is_refused_before_a_model_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.txt").touch()
    check_texts_here(["wikitext2", "self", str(tmp_path / "mine.txt")])
    for name, meant in (
        ("wikitext", "did you mean wikitext2?"),
        ("zebra", "available data sets: c4"),
    ):
        with pytest.raises(InvalidSpec, match=f"{name!r} not found: .*; {re.escape(meant)}"):
            check_texts_here(["code", name])
