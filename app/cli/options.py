"""Options that several commands share, and the help of their groups.

Options of the spec take type and default from its fields.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from typer.core import TyperGroup

from pruning.spec import InvalidSpec
from pruning.spec.calibration import Calibration, CalibrationMix, CalibrationSpec, Dataset
from pruning.spec.evaluation import Evaluation, Gate, gate_of
from pruning.spec.heal import Heal
from pruning.spec.prune import BEHIND_SEARCH, PruneSpec
from pruning.store_url import InvalidStoreUrl, StoreUrl, is_store_url

Command = Callable[..., None]
_Part = TypeVar("_Part")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text and tables.")]
MinTaskShare = Annotated[
    float | None,
    typer.Option(
        help="Minimum share of the dense model's accuracy above chance on zero-shot tasks, 0 to 1."
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(help="Name of a model in the data directory, or a directory.")
]
SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Name of a model in the data directory, a directory, or ORG/NAME on the "
        "Hugging Face hub."
    ),
]
CalibrationOption = Annotated[
    list[str],
    typer.Option(
        help="Calibration text: prose, code, documentation, wikitext2, c4, self, or a text "
        "or jsonl file; repeat to mix several, e.g. --calibration A.txt --calibration "
        "B.txt=2.",
        metavar="TEXT[=WEIGHT]",
    ),
]
DomainRatios = Annotated[
    list[str],
    typer.Option(
        help="The same limit for one domain of text, e.g. code=1.5; repeatable.",
        metavar="DOMAIN=RATIO",
    ),
]
TaskNames = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated tasks that both models answer: arc_easy, piqa, ...",
        metavar="TASK,...",
    ),
]
Url = Annotated[
    str | None,
    typer.Option(help="URL of the service [SLEB_HOST and SLEB_PORT, http://127.0.0.1:8000]."),
]
GATE = "gate_"  # options of the quality gate begin with it
EVALUATION = "evaluation_"  # those of the held-out text
HEAL = "heal_"  # and those of a healing, in a command that also prunes
_FIELD = re.compile(r"(?<![\w.-])(?:[a-z]+(?:_[a-z]+)+\b|[a-z_]+(?==)|sparsity\b)")  # a_b, a=
HELP: Mapping[str, str] = {
    "num_remove": "Number of blocks to remove.",
    "sparsity": "Fraction of the blocks to remove, rounded up.",
    "max_perplexity_ratio": "Stop before the perplexity relative to the dense model exceeds this.",
    "target_speedup": "Remove the fewest blocks that reach this decoding speed-up.",
    "target_bytes": "Remove the fewest blocks that bring the weights down to this size.",
    "sampling": "How to sample the text: windows, as in the paper; rows, as in the reference code.",
    "num_samples": "Number of windows, or of rows of raw text.",
    "seqlen": "Tokens per window.",
    "seed": "Seed of the calibration sample.",
    "protect_first": "Number of blocks at the start of the model that are never removed.",
    "protect_last": "Number of blocks at the end of the model that are never removed.",
    "dtype": "dtype of the weights: auto, float32, bfloat16 or float16.",
    "save_dtype": "dtype of the published weights; auto uses the model's dtype.",
    "evaluate": "Measure the perplexity at every depth after the search.",
    "metric": "Metric for removing blocks: cosine, one_shot or sleb (metrics 1, 2 and 3 of "
    "the paper), or kl (divergence from the dense model).",
    "search": "exact: score every candidate on all windows; staged: drop clearly worse "
    "candidates early.",
    "resident": "model: load the whole model; stream: read one block at a time from disk.",
    "gate_max_probe_drop": "Maximum drop of the probe score, from 0 to 1.",
    "gate_max_perplexity_ratio": "Maximum ratio of pruned to dense perplexity on held-out text.",
    "gate_action": "When a limit is exceeded: publish with a warning, refuse to publish, or "
    "publish with fewer removals.",
    "quantize": "Also measure the pruned model with int8 or int4 weights, or with w8a8: int8 "
    "weights and activations.",
    "gate_min_task_share": "Minimum share of the dense model's accuracy above chance, on every one "
    "of --tasks.",
    "task_questions": "Questions of each of --tasks, the first ones.",
    "evaluation_num_samples": "Held-out windows per domain; by default as many as needed.",
    "evaluation_seqlen": "Tokens per held-out window; by default 512, or as in the calibration "
    "if the model or a text is too short.",
    "evaluation_margin": "Add held-out windows until ratios are known to this margin; 0.03: ±3 %.",
    "evaluation_max_seconds": "Stop adding held-out windows after this many seconds.",
    "repair": "Repair of the remaining blocks; auto keeps the best repair on separate text, "
    "or none.",
}


HEAL_HELP: Mapping[str, str] = {
    "num_tokens": "Number of training tokens.",
    "max_minutes": "Maximum training time, in minutes.",
    "rank": "Rank of the adapters.",
    "alpha": "Scale of the adapters, applied as alpha / rank.",
    "learning_rate": "Peak learning rate; by default it depends on the width of the model.",
    "batch_tokens": "Tokens per optimizer step.",
    "warmup": "Fraction of the training with a rising learning rate.",
    "clip_norm": "Maximum gradient norm of a step.",
    "hidden_weight": "Weight of the last hidden state's error in the loss.",
    "checkpoint_activations": "Recompute activations in the backward pass: less memory, more time.",
    "steps_per_check": "Steps between measurements on held-out text.",
    "patience": "Stop after this many measurements without a new lowest loss.",
    "seed": "Seed of the adapters and of the text order.",
    "control": "Train the dense model in the same way, as a control.",
    "depths": "all: train one adapter for all depths; deepest: train only the deepest model.",
}


HEAL_OF_JOB: Mapping[str, str] = {HEAL + name: text for name, text in HEAL_HELP.items()}


def spec_options(*names: str) -> Callable[[Command], Command]:
    """Add the options ``names`` to a command, which receives them as ``**values``."""
    return _with_options(names, _parameters)


def heal_options(command: Command) -> Command:
    """Add an option for every field of ``Heal`` to a command, as ``**values``."""
    return _with_options(tuple(HEAL_HELP), lambda: _of_fields(Heal, "", HEAL_HELP))(command)


def change_options(command: Command) -> Command:
    """Add an option for every setting that follows a search to a command, as ``**values``.

    None of them has a default: what is not given stays as it was.
    """
    names = [*HELP, *HEAL_OF_JOB]
    chosen = [
        name for name in names if name in BEHIND_SEARCH or name.startswith((GATE, HEAL, EVALUATION))
    ]
    return _with_options(chosen, _changes)(command)


def changes_of(values: Mapping[str, object], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What options of ``change_options`` change; a gate or healing keeps the rest of ``spec``."""
    chosen = {name: value for name, value in values.items() if value is not None}
    changes = {name: value for name, value in chosen.items() if name in BEHIND_SEARCH}
    for part, prefix in (("gate", GATE), ("heal", HEAL), ("evaluation", EVALUATION)):
        nested = {
            name.removeprefix(prefix): chosen[name] for name in chosen if name.startswith(prefix)
        }
        if nested:
            changes[part] = {**(spec.get(part) or {}), **nested}
    return changes


def heal_of(values: Mapping[str, object], *, is_asked: bool) -> Heal | None:
    """The healing that the options of a job describe. Raises ``InvalidSpec``."""
    heal = heal_from(values, HEAL)
    if not is_asked and heal != Heal():
        changed = next(name for name in HEAL_HELP if getattr(heal, name) != getattr(Heal, name))
        option = f"--{HEAL}{changed}".replace("_", "-")
        raise InvalidSpec("heal", f"{option} requires --heal: add --heal")
    return heal if is_asked else None


def heal_from(values: Mapping[str, object], prefix: str = "") -> Heal:
    """The healing of options whose names begin with ``prefix``. Raises ``InvalidSpec``."""
    return _part_of(Heal, HEAL_HELP, values, prefix)


def _part_of(
    make: Callable[..., _Part], names: Iterable[str], values: Mapping[str, object], prefix: str
) -> _Part:
    """What ``make`` makes of the options that begin with ``prefix``, whose errors name options.

    Raises ``InvalidSpec``.
    """
    try:
        return make(**{name: values[prefix + name] for name in names if prefix + name in values})
    except InvalidSpec as error:
        name, _, key = error.param.partition(".")[2].partition(".")
        option = f"--{prefix}{name}".replace("_", "-")
        shown = error.param.removeprefix("gate.")  # the name of the field in the message
        message = str(error).replace(shown, f"{option} {key}".strip(), 1)
        raise InvalidSpec(error.param, message) from None


def _with_options(
    names: Sequence[str], parameters_of: Callable[[], Mapping[str, inspect.Parameter]]
) -> Callable[[Command], Command]:
    def with_options(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        required = [each for each in own if each.default is each.empty]
        known = parameters_of()
        parameters = [*required, *(known[name] for name in names), *own[len(required) :]]
        # where typer looks for them
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # of any callable
        return command

    return with_options


def spec_of(model: str, calibration: Calibration, values: Mapping[str, object]) -> PruneSpec:
    """The spec that the options describe. A field without an option has its default.

    Raises ``InvalidSpec``.
    """
    parts: dict[str, Any] = {
        "calibration": calibration,
        "gate": _part_of(gate_of, _names(Gate), values, GATE),
        "evaluation": _part_of(Evaluation, _names(Evaluation), values, EVALUATION),
    }
    return PruneSpec(**{**_values_of(PruneSpec, values), **parts, "model": model})


def with_options(message: str) -> str:
    """A message about fields of the spec, with the options of the command in their place."""

    def option(match: re.Match[str]) -> str:
        name = match[0]
        return f"--{name.replace('_', '-')}" if name in HELP else name

    return _FIELD.sub(option, message)


def _values_of(kind: type, values: Mapping[str, object]) -> dict[str, Any]:
    """Those values that are fields of the dataclass ``kind``."""
    return {name: values[name] for name in _names(kind) if name in values}


def _names(kind: Any) -> list[str]:  # noqa: ANN401 - any dataclass
    return [field.name for field in fields(kind)]


def calibration_of(texts: Sequence[str], values: Mapping[str, object]) -> Calibration:
    """One source, or a mix of several. Each text may end in ``=`` and its weight, by default 1.

    Raises ``InvalidSpec``.
    """
    named = [weighted(text) for text in texts]
    sources = tuple(source_of(name, values) for name, _ in named)
    mix = CalibrationMix(sources, tuple(weight for _, weight in named))
    return mix if len(sources) > 1 else sources[0]


def source_of(text: str, values: Mapping[str, object]) -> CalibrationSpec:
    """The source that ``text`` names, a data set or else a file, as the options describe it."""
    is_named = text in set(Dataset) - {Dataset.FILE}
    dataset, path = (Dataset(text), None) if is_named else (Dataset.FILE, text)
    own = _values_of(CalibrationSpec, values)
    return CalibrationSpec(**{**own, "dataset": dataset, "path": path})


def check_texts_here(names: Sequence[str]) -> None:
    """Check, before a model is loaded, that each text is a data set or a file of this machine.

    Raises ``InvalidSpec``.
    """
    data_sets = sorted(set(Dataset) - {Dataset.FILE})
    for name in names:
        if name in data_sets or Path(name).exists():
            continue
        near = get_close_matches(name, data_sets, n=1)
        meant = (
            f"did you mean {near[0]}?" if near else f"available data sets: {', '.join(data_sets)}"
        )
        raise InvalidSpec(
            "calibration",
            f"calibration text {name!r} not found: expected a data set or an existing file; "
            f"{meant}",
        )


def ratios_by_domain(texts: Sequence[str]) -> dict[str, float]:
    """The ratio of each ``DOMAIN=RATIO``. Raises ``InvalidSpec``."""
    ratios = {}
    for text in texts:
        domain, ratio = weighted(text)
        if domain == text:
            raise InvalidSpec(
                "gate.max_perplexity_ratio_of",
                f"{text!r} is not a ratio of a domain: expected DOMAIN=RATIO, e.g. code=1.5",
            )
        ratios[domain] = ratio
    return ratios


def tasks_of(text: str | None) -> tuple[str, ...]:
    """The names of tasks in a list with commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def num_bytes(text: str, least: int = 1) -> int:
    """The bytes of a size, as ``2GB`` or ``500MiB``."""
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(
            f"{text!r} is not a size: expected bytes, e.g. 2GB or 500MiB"
        ) from error
    if size < least:
        raise typer.BadParameter(f"{text!r} is too small: expected {least} bytes or more")
    return int(size)


def _parameters() -> dict[str, inspect.Parameter]:
    """Every option as a parameter of a function, with the type and the default of its field."""
    parameters: dict[str, inspect.Parameter] = {}
    for kind, prefix in (
        *((PruneSpec, ""), (CalibrationSpec, "")),
        *((Gate, GATE), (Evaluation, EVALUATION)),
    ):
        parameters |= _of_fields(kind, prefix, HELP)
    return parameters | _of_fields(Heal, HEAL, HEAL_OF_JOB)


def _changes() -> dict[str, inspect.Parameter]:
    """The same options without defaults."""
    changed = {}
    for name, parameter in _parameters().items():
        kind, option = get_args(parameter.annotation)
        changed[name] = parameter.replace(default=None, annotation=Annotated[kind | None, option])
    return changed


def _of_fields(kind: Any, prefix: str, texts: Mapping[str, str]) -> dict[str, inspect.Parameter]:  # noqa: ANN401 - any dataclass
    """The fields of a dataclass that have a help text."""
    types = get_type_hints(kind)
    names = {prefix + field.name: field for field in fields(kind)}
    return {
        name: inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=field.default,
            annotation=Annotated[types[field.name], typer.Option(help=texts[name])],
        )
        for name, field in names.items()
        if name in texts
    }


def weighted(text: str) -> tuple[str, float]:
    """Name and weight. If no number follows the last ``=``, all of the text is the name."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0


def place_of(text: str) -> Path | StoreUrl:
    """The directory or the URL of a store that an option names."""
    return url_of(text) if is_store_url(text) else Path(text)


def url_of(text: str) -> StoreUrl:
    try:
        return StoreUrl.parse(text)
    except InvalidStoreUrl as error:
        raise typer.BadParameter(f"{text}: it {error}") from error


class WholeHelp(TyperGroup):
    """Lists each command with the first sentence of its help, in as many lines as it takes."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - typer's context has no public name
        command = super().get_command(ctx, cmd_name)
        if command is not None and not command.short_help and command.help:
            command.short_help = _first_sentence(command.help)
        return command


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split())
    sentence, dot, _ = paragraph.partition(". ")
    return sentence if dot else paragraph.removesuffix(".")
