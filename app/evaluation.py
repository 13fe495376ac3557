"""``sleb eval``: perplexity, the probe and tasks of lm-eval, on any models side by side."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from app.eval_subject import NotEvaluable, Subject, subject_of
from app.eval_tables import Evaluation, print_evaluations
from app.prune import search_progress
from pruning.blocks import num_blocks, view
from pruning.config import Settings
from pruning.memory import free_bytes
from pruning.models import pick_device, set_up_torch
from pruning.perplexity import Perplexity, measure_perplexity
from pruning.probe import digest, probe_items
from pruning.probe_score import ProbeScore, summary
from pruning.probing import answer
from pruning.residence import Machine, Residence, reside_at
from pruning.sleb import Blocks
from pruning.spec import Resident
from pruning.texts import text_windows
from pruning.zeroshot import PAPER_TASKS, TaskScore, mean_accuracy, require_lm_eval, score_tasks

_TEXT = "ppl:"
_PROBE = "probe"
_PAPER = "zeroshot"


class InvalidTasks(ValueError):
    """The list of tasks cannot be meant."""


@dataclass(frozen=True)
class Tasks:
    """What to measure: perplexity on ``texts``, the probe, and ``zero_shot`` tasks of lm-eval."""

    texts: tuple[str, ...]
    has_probe: bool
    zero_shot: tuple[str, ...]
    seqlen: int = 2048
    num_windows: int | None = None
    tasks_dir: Path | None = None
    limit: int | None = None

    @classmethod
    def parse(cls, names: Sequence[str]) -> "Tasks":
        """Of ppl:TEXT, probe, zeroshot and names of lm-eval. Raises ``InvalidTasks``."""
        given = [name.strip() for name in names if name.strip()]
        texts = [name.removeprefix(_TEXT) for name in given if name.startswith(_TEXT)]
        if not given or "" in texts:
            raise InvalidTasks(
                f"tasks={','.join(names)!r}: expected ppl:TEXT, probe, zeroshot or names of lm-eval"
            )
        others = (name for name in given if name != _PROBE and not name.startswith(_TEXT))
        zero_shot = [t for name in others for t in (PAPER_TASKS if name == _PAPER else (name,))]
        return cls(tuple(dict.fromkeys(texts)), _PROBE in given, tuple(dict.fromkeys(zero_shot)))


@dataclass(frozen=True)
class Options:
    dtype: str = "auto"
    resident: Resident | None = None  # None: in memory if it fits, else streamed
    texts_dir: Path | None = None  # None: the one of the data directory


def run_evaluation(
    names: Sequence[str],
    tasks: Tasks,
    options: Options,
    settings: Settings,
    *,
    as_json: bool,
    out: Path | None,
) -> None:
    """Evaluate each model, weights that several share read once, and print or write the results."""
    if tasks.zero_shot:
        require_lm_eval()
    set_up_torch(settings.threads)
    subjects = [subject_of(name, settings) for name in names]
    with search_progress(Console(stderr=True)) as progress:
        found = dict(_evaluated(subjects, tasks, options, settings, progress))
    print_evaluations([found[subject] for subject in subjects], as_json=as_json, out=out)


def _evaluated(
    subjects: Sequence[Subject],
    tasks: Tasks,
    options: Options,
    settings: Settings,
    progress: Progress,
) -> Iterator[tuple[Subject, Evaluation]]:
    machine = Machine(settings.device, settings.state_budget)
    texts_dir = options.texts_dir or settings.data_dir / "texts"
    for path in dict.fromkeys(subject.path for subject in subjects):
        resident = options.resident or _where_it_fits(path, machine)
        if tasks.zero_shot and resident is Resident.STREAM:
            raise NotEvaluable(
                f"{path} does not fit into memory or is to be streamed, and tasks of lm-eval need "
                "the whole model there: leave them out, or say --resident model"
            )
        loading = progress.add_task("load", total=None)
        residence = reside_at(path, resident, machine, dtype=options.dtype)
        progress.remove_task(loading)
        for subject in (its for its in subjects if its.path == path):
            run = _Run(subject, residence, tasks, texts_dir, progress)
            yield subject, run.evaluation()


def _where_it_fits(path: Path, machine: Machine) -> Resident:
    """In memory, unless its files alone are larger than what is free on the device."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    is_too_large = size > free_bytes(torch.device(pick_device(machine.device)))
    return Resident.STREAM if is_too_large else Resident.MODEL


@dataclass(frozen=True)
class _Run:
    """One model, loaded, and what is to be measured of it."""

    subject: Subject
    residence: Residence
    tasks: Tasks
    texts_dir: Path
    progress: Progress

    def evaluation(self) -> Evaluation:
        scores = self._zero_shot()
        return Evaluation(
            model=self.subject.name,
            num_blocks=len(self._keep),
            removed_blocks=self.subject.removed_blocks,
            dtype=str(self.residence.model.dtype).removeprefix("torch."),
            perplexities=tuple(self._perplexity(text) for text in self.tasks.texts),
            probe=self._probe() if self.tasks.has_probe else None,
            tasks=tuple(scores),
            zero_shot_mean=mean_accuracy(scores),
        )

    @property
    def _keep(self) -> Blocks:
        keep = self.subject.keep
        return tuple(range(num_blocks(self.residence.model))) if keep is None else keep

    def _perplexity(self, text: str) -> Perplexity:
        windows = text_windows(
            text,
            self.texts_dir,
            self.residence.model,
            self.residence.tokenizer,
            seqlen=self.tasks.seqlen,
            num_windows=self.tasks.num_windows,
        )
        with self._observed(f"ppl:{text}") as observe:
            return measure_perplexity(self.residence.passes(self._keep), windows, observe=observe)

    def _probe(self) -> ProbeScore:
        items = probe_items()
        with self._observed("probe") as observe:
            passes = self.residence.passes(self._keep)
            answers = answer(passes, self.residence.tokenizer, items, observe=observe)
        return summary(answers, digest(items))

    def _zero_shot(self) -> list[TaskScore]:
        if not self.tasks.zero_shot:
            return []
        with self._observed(", ".join(self.tasks.zero_shot)):
            return score_tasks(
                view(self.residence.model, self._keep),
                self.residence.tokenizer,
                self.tasks.zero_shot,
                tasks_dir=self.tasks.tasks_dir,
                limit=self.tasks.limit,
            )

    @contextmanager
    def _observed(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar while it is measured."""
        bar = self.progress.add_task(f"{self.subject.name}  {what}", total=None)

        def observe(done: int, total: int) -> None:
            self.progress.update(bar, completed=done, total=total)

        yield observe
        self.progress.stop_task(bar)
