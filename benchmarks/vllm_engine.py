"""What vLLM loses behind our API, and whether ``sleb bench`` reads the ratio that vLLM's own does.

- Closed loops of several numbers of clients with streams, in turns: through ``sleb serve`` with
  ``SLEB_ENGINE=vllm``, and directly against the ``vllm serve`` that it runs. Wanted: 0.95 of its
  tokens per second, and 1.1 times its time to the first token.
- The speed-up per token of a pruned model over the dense one: runs of ``sleb bench --engine vllm``
  and of ``vllm bench serve`` on the same servers, in short turns, each after a request that does
  not count. Wanted: a difference of at most 2 %.

Both sides of each use the same servers, since two of one model may differ by a tenth of their
times. These have the options of ``SLEB_VLLM_ARGS``.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from transformers import AutoTokenizer

from app.bench.in_vllm import runs_in_vllm
from app.bench.plan import DENSE, BenchPlan, Scenario
from app.compare.speedup import speedup, turns
from app.config import ServeSettings
from app.models.external import ExternalModel
from benchmarks.latencies import performance, run_in_turn
from benchmarks.load import closed_loop
from benchmarks.peers import SLEB, Closed, rows
from benchmarks.plan import Baseline
from benchmarks.reports import facts, write
from benchmarks.search import Dtype
from benchmarks.servers import forwarded, no_server_left, sleb_serve_on, vllm_behind
from benchmarks.workload import Prompts
from pruning.checkpoints.markdown import markdown_table
from pruning.config import child_environment
from pruning.models.demo_model import NAME

_VLLM_BENCH = Path(__file__).with_name("vllm_bench.py")
_MIN_CLIENTS = 4  # whose requests are sent, also by fewer
_FREE = 64  # tokens of the context beyond those of a request: vLLM's own bench may need some


@dataclass(frozen=True)
class Sizes:
    """Lengths are in tokens. ``requests`` are those of one run of a bench."""

    clients: tuple[int, ...]
    prompt_len: int
    output_len: int
    repeats: int
    bench_clients: int
    bench_requests: int
    bench_repeats: int

    @property
    def max_len(self) -> int:
        return self.prompt_len + self.output_len + _FREE

    @property
    def max_num_seqs(self) -> int:
        return max(*self.clients, self.bench_clients)


def main(
    out: Annotated[Path, typer.Option(help="Where to write the JSON and the table.")],
    program: Annotated[Path, typer.Option(help="The program vllm.")],
    model: Annotated[str, typer.Option(help="Of the data directory.")] = NAME,
    variant: Annotated[str, typer.Option(help="Compared with the dense model.")] = "@-6",
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "1,16,64",
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens.")] = 64,
    output_len: Annotated[int, typer.Option(min=2, help="Tokens.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 4,
    bench_repeats: Annotated[int, typer.Option(min=2, help="Turns of each bench.")] = 6,
    bench_requests: Annotated[int, typer.Option(min=1, help="Of one run of a bench.")] = 32,
    dtype: Dtype = Dtype.BFLOAT16,
    parts: Annotated[str, typer.Option(help="Any of through_api, bench.")] = "through_api,bench",
) -> None:
    numbers = tuple(int(each) for each in clients.split(","))
    sizes = Sizes(numbers, prompt_len, output_len, repeats, 8, bench_requests, bench_repeats)
    subject = Subject(program.absolute(), model, f"{model}{variant}", dtype.value, sizes)
    out.parent.mkdir(parents=True, exist_ok=True)  # fail before the measurements
    report: dict[str, Any] = {
        "model": model,
        "variant": subject.variant,
        "dtype": subject.dtype,
        "sizes": asdict(sizes),
        **facts("vllm_engine"),
    }
    known = {"through_api": through_api, "bench": bench}
    for name in parts.split(","):
        report[name] = known[name](subject)
        write(report, out, markdown(report))
    sys.stdout.write(markdown(report))


@dataclass(frozen=True)
class Subject:
    """What is measured, with the settings of this process."""

    program: Path
    model: str
    variant: str
    dtype: str
    sizes: Sizes

    @property
    def settings(self) -> ServeSettings:
        given = ServeSettings()
        changes = {
            "engine": "vllm",
            "vllm": self.program,
            "vllm_args": f"--dtype {self.dtype} {given.vllm_args}",
            "vllm_servers": 2,
            "kv_cache_bytes": 4 * 2**30,  # of two servers
            "max_model_len": self.sizes.max_len,
            "max_num_seqs": self.sizes.max_num_seqs,
            "prefix_cache": "off",
            "preload": (self.model,),
            "redis_url": None,
        }
        return given.model_copy(update=changes)


def through_api(subject: Subject) -> dict[str, Any]:
    """Our figures over vLLM's for each number of clients."""
    directory, sizes = subject.settings.models_dir / subject.model, subject.sizes
    prompts = Prompts(AutoTokenizer.from_pretrained(directory), seed=0)
    with no_server_left(), sleb_serve_on(subject.settings, subject.model) as service:
        servers = {SLEB: service, Baseline.VLLM: vllm_behind(service)}
        passes_of: Closed = {
            number: run_in_turn(
                {
                    name: partial(closed_loop, server, concurrency=number)
                    for name, server in servers.items()
                },
                prompts.uniform(2 * max(number, _MIN_CLIENTS), sizes.prompt_len, sizes.output_len),
                sizes.repeats,
            )
            for number in sizes.clients
        }
    return {
        "over_vllm": rows(passes_of, Baseline.VLLM),
        "sides": {
            str(number): {name: performance(timed) for name, timed in passes.items()}
            for number, passes in passes_of.items()
        },
    }


def bench(subject: Subject) -> dict[str, Any]:
    """The speed-up per token by each bench, from the means of all its runs, with its interval."""
    sizes = subject.sizes
    plan = BenchPlan(
        scenarios=(Scenario.SERVED,),
        prompt_tokens=sizes.prompt_len,
        served_tokens=sizes.output_len,
        concurrency=sizes.bench_clients,
        requests=sizes.bench_requests,
    )
    tpots_s: dict[str, dict[str, list[float]]] = {
        bench: {DENSE: [], subject.variant: []} for bench in ("sleb bench", "vllm bench serve")
    }
    with no_server_left(), _both(subject, plan) as sides:
        for name, side in sides.items():
            for of in tpots_s[name]:
                side(of)  # a warm-up
        for repeat in range(sizes.bench_repeats):
            for name, side in turns([*sides.items()], repeat):
                for of, seconds in turns([*tpots_s[name].items()], repeat):
                    seconds.append(side(of))
    ratios = {name: speedup(of[DENSE], of[subject.variant]) for name, of in tpots_s.items()}
    ours, theirs = ratios["sleb bench"], ratios["vllm bench serve"]
    return {
        "speedup": {
            name: {"ratio": each.ratio, "low": each.low, "high": each.high}
            for name, each in ratios.items()
        },
        "difference": ours.ratio / theirs.ratio - 1,
        "tpots_s": tpots_s,
    }


@contextmanager
def _both(subject: Subject, plan: BenchPlan) -> Iterator[dict[str, Callable[[str], float]]]:
    """A function of each bench that measures a side: seconds per token of a run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sleb-bench-")))
        runs = stack.enter_context(runs_in_vllm(subject.model, [subject.variant], subject.settings))
        process = stack.enter_context(_vllm_bench_process(subject.program))
        models = {side: runs.model(side) for side in (DENSE, subject.variant)}
        urls = {
            side: stack.enter_context(forwarded(model.socket))
            for side, model in models.items()
            if model.socket is not None
        }
        tokenizer = subject.settings.models_dir / subject.model

        def sleb(side: str) -> float:
            runs.measure(side, Scenario.SERVED, plan.warm_up)
            return runs.measure(side, Scenario.SERVED, plan).times_s["tpot"]

        def vllm(side: str) -> float:
            return _vllm_bench(process, urls[side], models[side], tokenizer, plan, folder)

        yield {"sleb bench": sleb, "vllm bench serve": vllm}


@contextmanager
def _vllm_bench_process(program: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [str(program.with_name("python")), str(_VLLM_BENCH)]
    environment = {**child_environment(ServeSettings()), "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: S603 - our own command
        command, env=environment, stdin=pipe, stdout=pipe, text=True, bufsize=1
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _vllm_bench(
    process: "subprocess.Popen[str]",
    url: str,
    model: ExternalModel,
    tokenizer: Path,
    plan: BenchPlan,
    folder: Path,
) -> float:
    """Mean seconds per token by ``vllm bench serve``."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    options = {
        "base-url": url,
        "header": f"Authorization=Bearer {model.api_key}",
        "model": model.model,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": plan.prompt_tokens,
        "random-output-len": plan.served_tokens,
        "num-prompts": plan.requests,
        "max-concurrency": plan.concurrency,
        "temperature": 0,
        "result-dir": folder,
        "result-filename": result.name,
    }
    arguments = ["--ignore-eos", "--save-result", "--disable-tqdm"]
    arguments += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(arguments) + "\n")
    process.stdout.readline()
    return float(json.loads(result.read_text())["mean_tpot_ms"]) / 1e3


def markdown(report: Mapping[str, Any]) -> str:
    lines = [*_of_api(report["through_api"])] if "through_api" in report else []
    if "bench" in report:
        lines += [f"## Speed-up per token of {report['variant']}", "", *_of_bench(report["bench"])]
    return "\n".join([*lines, f"`{report['command']}`", ""])


def _of_api(part: Mapping[str, Any]) -> Iterator[str]:
    yield from ("## vLLM through the API over vLLM directly", "")
    rows = [
        (str(row["clients"]), f"{row['tokens_per_s']:.3f}×",
         f"{row['from']:.3f} to {row['to']:.3f}", f"{row['ttft']:.3f}×")
        for row in part["over_vllm"]
    ]  # fmt: skip
    yield markdown_table(("clients", "tokens per second", "range", "time to first token"), rows)
    yield ""


def _of_bench(part: Mapping[str, Any]) -> Iterator[str]:
    for name, one in part["speedup"].items():
        yield f"- {name}: {one['ratio']:.4f}× ({one['low']:.3f} to {one['high']:.3f})"
    yield from (f"- difference: {part['difference']:+.2%}", "")


if __name__ == "__main__":
    typer.run(main)
