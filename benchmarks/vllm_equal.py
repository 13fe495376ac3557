"""Whether vLLM, run by the service, generates what the own engine does: greedy, in float32.

Asked are the dense model, a pruned checkpoint with its repair, its prefix of one block less, the
whole without repair, and a healed one. The checkpoint is of the data directory. A healed one that
is not there is trained on few tokens: equality does not depend on its quality.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx2
import typer

from app.config import ServeSettings
from benchmarks.reports import facts, write
from benchmarks.servers import link_model, no_server_left, sleb_serve_on
from pruning.checkpoints.store import MANIFEST, CheckpointStore
from pruning.config import child_environment
from pruning.models.demo_model import NAME
from pruning.models.names import healed_name
from pruning.models.safetensors_headers import fingerprint

DTYPE = "float32"  # in which equal sums differ by less than two likely tokens do
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):\n",
    "In 1969, two men walked on",
    "Water boils at a temperature of",
    "The quick brown fox",
    "A list of fruits: apples,",
    "import os\nimport sys\n\n",
    "The cat sat on the mat because",
    "Because it rained all day, the children",
    "She opened the letter and",
    "The three laws of motion say that",
    "for i in range(10):\n    print(",
    "To bake bread, first mix flour with",
    "The opposite of large is",
    "On Monday the shop opens at",
    "A triangle has three",
    "class Stack:\n    def push(self, item):\n",
    "Dear Sir or Madam,",
    "The river flows from the mountains to",
)
_HEAL_TOKENS = 4096
_MAX_LEN = 256
_TIMEOUT_S = 3600.0  # for the first answer of a model, which may wait for its export and start

Answer = Sequence[tuple[int, float]]  # the id and the log-probability of each token


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON, with a table beside it.")],
    program: Annotated[Path, typer.Option(help="The program vllm.")],
    model: Annotated[str, typer.Option(help="Of the data directory.")] = NAME,
    job: Annotated[str, typer.Option(help="Of a checkpoint of it, with two blocks less.")] = "demo",
    new_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 24,
    kinds: Annotated[str, typer.Option(help="Of dense,repaired,shallower,raw,healed.")] = "",
) -> None:
    """Ends with code 1 if any answer differs. What is known is written after each model."""
    out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "model": model,
        "dtype": DTYPE,
        "new_tokens": new_tokens,
        "kinds": {},
        **facts("vllm_equal"),
    }
    with no_server_left(), _settings(model, f"{model}@{job}") as own:
        asked = _kinds(model, f"{model}@{job}", own)
        asked = {kind: asked[kind] for kind in kinds.split(",") if kind} or asked
        ours = dict(_answers(own, asked, new_tokens))
        for kind, answers in _answers(_in_vllm(own, program), asked, new_tokens):
            equality = asdict(Equality.of(ours[kind], answers))
            report["kinds"][kind] = {"name": asked[kind], **equality}
            write(report, out, markdown(report))
    sys.stdout.write(markdown(report))
    if any(equality["num_equal"] < len(PROMPTS) for equality in report["kinds"].values()):
        raise typer.Exit(1)


def _in_vllm(own: ServeSettings, program: Path) -> ServeSettings:
    arguments = f"--enforce-eager --dtype {DTYPE} {own.vllm_args}"
    changes = {"engine": "vllm", "vllm": program.absolute(), "vllm_servers": 1}
    return own.model_copy(update={**changes, "vllm_args": arguments})


@dataclass(frozen=True)
class Equality:
    """``gap`` is the largest one between log-probabilities of the same tokens."""

    num_equal: int
    gap: float

    @classmethod
    def of(cls, ours: Sequence[Answer], theirs: Sequence[Answer]) -> "Equality":
        pairs = list(zip(ours, theirs, strict=True))
        ids = [([token for token, _ in our], [token for token, _ in their]) for our, their in pairs]
        gaps = (
            abs(our[1] - their[1])
            for our_answer, their_answer in pairs
            for our, their in zip(our_answer, their_answer, strict=False)
            if our[0] == their[0]
        )
        return cls(sum(our == their for our, their in ids), max(gaps, default=0.0))


@contextmanager
def _settings(model: str, checkpoint: str) -> Iterator[ServeSettings]:
    """Of the own engine, on a temporary data directory with the model in float32."""
    settings = ServeSettings()
    with TemporaryDirectory(prefix="sleb-equal-", dir=settings.data_dir.parent) as directory:
        data_dir = Path(directory)
        link_model(settings.models_dir / model, data_dir / "models" / model, DTYPE)
        stored = CheckpointStore(settings.checkpoints_dir)
        for name in filter(stored.holds, (checkpoint, healed_name(checkpoint))):
            target = data_dir / "checkpoints" / name
            shutil.copytree(stored.directory(name), target, copy_function=os.link)
            _adopt(target / MANIFEST, data_dir / "models" / model)
        changes = {
            "data_dir": data_dir,
            "redis_url": None,
            "tune": "off",
            "preload": (),
            "max_model_len": _MAX_LEN,
            "kv_cache_bytes": 2**30,
            "vllm_start_s": 900.0,
        }
        yield settings.model_copy(update=changes)


def _adopt(manifest: Path, parent: Path) -> None:
    """Let the checkpoint be one of this model, whose weights are the same in another type."""
    content = json.loads(manifest.read_text())
    manifest.unlink()  # it has a link elsewhere
    manifest.write_text(json.dumps({**content, "parent_fingerprint": fingerprint(parent)}))


def _kinds(model: str, checkpoint: str, settings: ServeSettings) -> Mapping[str, str]:
    """The names of all that is asked, by what they are."""
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    if not checkpoints.holds(healed_name(checkpoint)):
        options = ["--num-tokens", str(_HEAL_TOKENS), "--no-control"]
        command = [sys.executable, "-m", "app", "heal", checkpoint, *options]
        subprocess.run(command, check=True, env=child_environment(settings))  # noqa: S603 - our own command
    depth = len(checkpoints.manifest(checkpoint).removed_blocks) - 1
    return {
        "dense": model,
        "repaired": checkpoint,
        "shallower": f"{checkpoint}-{depth}",
        "raw": f"{checkpoint}+raw",
        "healed": healed_name(checkpoint),
    }


def _answers(
    settings: ServeSettings, kinds: Mapping[str, str], new_tokens: int
) -> Iterator[tuple[str, list[Answer]]]:
    with sleb_serve_on(settings, "") as server:
        for kind, name in kinds.items():
            sys.stderr.write(f"{settings.engine}: {name}\n")
            body = {"model": name, "prompt": PROMPTS, "max_new_tokens": new_tokens, "logprobs": 0}
            response = httpx2.post(f"{server.url}/generate", json=body, timeout=_TIMEOUT_S)
            if not response.is_success:
                raise RuntimeError(f"{name}: {response.text}")
            outputs = response.json()["outputs"]
            yield kind, [_answer(output["logprobs"]) for output in outputs]


def _answer(tokens: Sequence[Mapping[str, Any]]) -> Answer:
    return [(int(token["token_id"]), float(token["logprob"])) for token in tokens]


def markdown(report: Mapping[str, Any]) -> str:
    lines = ["| model | equal answers | largest gap of log-probabilities |", "|---|--:|--:|"]
    for kind, equality in report["kinds"].items():
        cells = (f"{kind} (`{equality['name']}`)", f"{equality['num_equal']} of {len(PROMPTS)}")
        lines.append(f"| {' | '.join(cells)} | {equality['gap']:.6f} |")
    return "\n".join([*lines, "", f"`{report['command']}`", ""])


if __name__ == "__main__":
    typer.run(main)
