"""Servers under load: ``sleb serve``, vLLM and llama.cpp.

Each is a process on a free port.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import psutil

from app.config import ServeSettings
from app.vllm import keeper
from benchmarks.workload import SampleRequest
from pruning.checkpoints.gguf import write_gguf
from pruning.config import child_environment
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.prune import Resident

_START_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.2
_KERNELS_DUE = re.compile(r'"kernels": ?"(compiling|timing)"')
_OURS: Mapping[str, object] = {
    "temperature": 0,
    "ignore_eos": True,
    "stream_options": {"include_usage": True},
}


_VLLM: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; the default is half of the memory
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # all threads that it is given, none left out
}
_VLLM_REUSES = ("--enable-prefix-caching", "--enable-prompt-tokens-details")


class ServerFailed(RuntimeError):
    """A server did not become ready, or sent an unexpected response."""


@dataclass(frozen=True)
class Server:
    """A server of ``/v1/completions``. The extra fields make outputs greedy and of fixed length."""

    url: str
    model: str
    extra: Mapping[str, object]
    pid: int | None = None  # None: not started here
    socket: Path | None = None  # of Unix, in place of a port
    key: str = ""

    def body(self, request: SampleRequest) -> Mapping[str, object]:
        return {
            "model": self.model,
            "prompt": list(request.prompt_ids),
            "max_tokens": request.num_new_tokens,
            "stream": True,
            **self.extra,
        }


@contextmanager
def no_server_left() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and kill all child processes at the end."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        children = psutil.Process().children(recursive=True)
        for process in children:  # such as one that was being started when the signal arrived
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(children, _STOP_TIMEOUT_S)


@contextmanager
def sleb_serve(model: Path, dtype: str, threads: int | None) -> Iterator[Server]:
    """``sleb serve`` with defaults, on a temporary data directory with a link to the model."""
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        data_dir = Path(directory)
        link_model(model, data_dir / "models" / model.name, dtype)
        settings = ServeSettings(data_dir=data_dir, threads=threads, redis_url=None)
        with sleb_serve_on(settings, model.name) as server:
            yield server


def sleb_serve_on(
    settings: ServeSettings, model: str, program: Sequence[str] = ("-m", "app")
) -> AbstractContextManager[Server]:
    """``sleb serve`` with these settings except for the port."""
    return _served([sys.executable, *program, "serve"], child_environment(settings), model)


def vllm_behind(service: Server) -> Server:
    """The vLLM that runs as the engine of this service, asked directly. Raises ``ServerFailed``."""
    for process in psutil.Process(service.pid).children(recursive=True):
        words = process.cmdline()
        if "--uds" in words:
            path = Path(words[words.index("--uds") + 1])
            key = process.environ()["VLLM_API_KEY"]
            return Server("http://vllm", service.model, service.extra, socket=path, key=key)
    raise ServerFailed(f"{service.url} runs no vLLM: expected SLEB_ENGINE=vllm")


@contextmanager
def sleb_worker_on(settings: ServeSettings) -> Iterator[None]:
    """``sleb worker`` beside a service with these settings."""
    command = [sys.executable, "-m", "app", "worker"]
    with _process(command, child_environment(settings), settings.data_dir / "worker.log"):
        yield


@contextmanager
def vllm_serve(
    program: Path,
    model: Path,
    dtype: str,
    threads: int | None,
    max_len: int,
    max_num_seqs: int,
    options: Sequence[str] = (),
    *,
    reuses_prefixes: bool = False,
) -> Iterator[Server]:
    """``vllm serve``, by default without the cache of prefixes, since turns have the same prompts.

    Raises ``ServerFailed``.
    """
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        command = [str(program), "serve", str(model), "--served-model-name", model.name]
        command += ["--dtype", dtype, "--max-model-len", str(max_len)]
        command += ["--max-num-seqs", str(max_num_seqs), *options]
        command += _VLLM_REUSES if reuses_prefixes else ["--no-enable-prefix-caching"]
        # vLLM has processes of its own, which outlive it if it is killed
        command = [sys.executable, "-m", keeper.__name__, f"{directory}/kept", *command]
        environment = {**child_environment(ServeSettings()), **_VLLM}
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        with _served(command, environment, model.name, health="/v1/models") as server:
            yield server


@contextmanager
def llama_server(
    program: Path, model: Path, dtype: str, threads: int | None, max_len: int, max_num_seqs: int
) -> Iterator[Server]:
    """llama.cpp's ``llama-server`` with a slot for each client, on a GGUF file in this type.

    Raises ``ServerFailed``, or ``GgufUnsupported`` for a model that llama.cpp does not know.
    """
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        file = Path(directory) / "model.gguf"
        dense = load_dense_model(model, Resident.MODEL, Resources(device="cpu"), dtype=dtype)
        write_gguf(file, dense, dense.every_block, model.name)
        command = [str(program), "--model", str(file), "--parallel", str(max_num_seqs)]
        command += ["--ctx-size", str(max_num_seqs * max_len)]
        if threads is not None:
            command += ["--threads", str(threads), "--threads-batch", str(threads)]
        extra = {**_OURS, "cache_prompt": False}
        environment = child_environment(ServeSettings())
        with _served(command, environment, model.name, health="/health", extra=extra) as server:
            yield server


@contextmanager
def paused(servers: Iterable[Server]) -> Iterator[None]:
    """Stop these servers and their children meanwhile, so that they take no time at all."""
    started = [psutil.Process(server.pid) for server in servers if server.pid is not None]
    stopped = [each for one in started for each in (one, *one.children(recursive=True))]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            process.resume()


def link_model(model: Path, link: Path, dtype: str) -> None:
    """Link the files of the model, with a config that sets the data type."""
    link.mkdir(parents=True)
    for file in model.iterdir():
        (link / file.name).symlink_to(file.absolute())
    config = json.loads((model / "config.json").read_text())
    (link / "config.json").unlink()
    (link / "config.json").write_text(json.dumps({**config, "dtype": dtype}))


@contextmanager
def _served(
    command: Sequence[str],
    environment: Mapping[str, str],
    model: str,
    *,
    health: str = "/health/ready",
    extra: Mapping[str, object] = _OURS,
) -> Iterator[Server]:
    """The server that this command starts on a free port.

    Waits until it answers on the path ``health``, compiles nothing and times no kernels.
    """
    port = _free_port()
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(prefix="sleb-bench-") as directory:
        log = Path(directory) / "log"
        with _process(command, environment, log) as process:
            _wait_until_ready(url + health, process, log)
            yield Server(url, model, extra, process.pid)


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            env=environment,
            stdin=subprocess.PIPE,  # a keeper ends its command when this process does
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
        if process.poll() is not None:
            raise ServerFailed(f"{command[2:4]} exited:\n{_tail(log)}")
    finally:
        _stop(process)


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Our own server says what is done for its kernels, too."""
    pause = threading.Event()
    for _ in range(int(_START_TIMEOUT_S / _POLL_S)):
        if process.poll() is not None:
            break
        try:
            response = httpx2.get(url)
            if response.status_code == 200 and not _KERNELS_DUE.search(response.text):
                return
        except httpx2.TransportError:
            pass
        pause.wait(_POLL_S)
    raise ServerFailed(f"{url} did not become ready; last lines of its log:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _stop(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
