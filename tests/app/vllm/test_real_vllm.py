"""The real vLLM, as ``make vllm`` installs it."""

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from app.config import ServeSettings
from app.server.valkey import embedded_valkey
from app.vllm.options import VllmOptions
from app.vllm.server import HEALTHY_S
from pruning.models.names import healed_name
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.healing import HEAL, NAME, heal_tiny
from tests.support.pages import ROOT
from tests.support.processes import serve_process
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder
from tests.support.serving import LocalClient, local_api
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

PROGRAM = shutil.which(ROOT / "build" / "vllm" / "bin" / "vllm")
# without a compiler's minute; one server, as each has its threads
OPTIONS: dict[str, Any] = {
    "engine": "vllm",
    "vllm": PROGRAM and Path(PROGRAM),
    "vllm_args": "--enforce-eager --dtype float32",
    "vllm_servers": 1,
    "kv_cache_bytes": 2**30,
    "preload": (),
}
VICTIMS = ("vllm serve", "EngineCore", "app.vllm.keeper")  # the last of that title
START_S = 600.0  # on a machine that does other things
PROMPTS = [f"the quick {word} over {number} dogs" for number in range(4) for word in
           ("fox", "dog", "lazy brown fox", "naïve 数学", "sleep")]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="vLLM is not installed: make vllm"),
    pytest.mark.timeout(3000),
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, one repaired and one healed, all in float32. vLLM knows no smaller heads."""
    data_dir = tmp_path_factory.mktemp("vllm")
    write_tiny_model(data_dir / "models" / "tiny", head_dim=32)
    text = data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(900)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    prune_tiny(data_dir / "models", PruneSpec("tiny", 2, calibration=calibration), NAME)
    heal_tiny(data_dir, HEAL, healed_name(NAME), Recorder())
    return data_dir


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0, tune="off", threads=1)


def outputs(api: LocalClient, model: str) -> list[list[int]]:
    body = {"model": model, "prompt": PROMPTS, "max_new_tokens": 16, "logprobs": 0}
    answer = api.post("/generate", json=body)
    assert answer.status_code == 200, answer.text
    return [[token["token_id"] for token in each["logprobs"]] for each in answer.json()["outputs"]]


def test_greedy_outputs_are_those_of_the_engine(settings: ServeSettings, redis_url: str) -> None:
    names = ["tiny", NAME, f"{NAME}-1", f"{NAME}+raw", healed_name(NAME)]
    with local_api(settings, redis_url) as api:
        expected = {name: outputs(api, name) for name in names}
    assert len({str(each) for each in expected.values()}) >= 4  # they are other models
    with local_api(settings.model_copy(update=OPTIONS), redis_url) as api:
        for name in names:
            assert outputs(api, name) == expected[name], name
            assert api.get(f"/models/{name}").json()["backend"] == "vllm"


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def servers() -> list[psutil.Process]:
    """All processes of vLLM servers on this machine, with their keepers, parents first.

    vLLM writes the titles of some over their environment.
    """
    found: dict[int, psutil.Process] = {}
    for one in psutil.process_iter():
        if "VLLM_API_KEY" in _environment(one):
            found[one.pid] = one
            with suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in one.children(recursive=True)}
    return list(found.values())


@pytest.fixture
def strangers() -> set[int]:
    """Servers that others have started on this machine."""
    return {process.pid for process in servers()}


def ours(strangers: set[int]) -> list[psutil.Process]:
    return [process for process in servers() if process.pid not in strangers]


def victim(named: str) -> psutil.Process:
    """The last descendant of this process whose command line has this in it."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if named in _title(process)][-1]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def num_kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--kills"))


def own_start_s(model: Path, folder: Path) -> float:
    """Seconds from the start of vLLM by itself to its first token."""
    folder.mkdir()
    settings = ServeSettings(**OPTIONS, threads=1)
    options = VllmOptions.of(settings)
    assert options is not None
    path = folder / "socket"
    environment = options.environment("key", 2**30)
    began_s = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            options.command(model, "tiny", path), env=environment, stdout=log, stderr=log
        )
    try:
        wait_for_token(path, "key")
        return time.monotonic() - began_s
    finally:
        process.terminate()
        process.wait(100)


def wait_for_token(path: Path, key: str) -> None:
    """Until the vLLM that listens there generates one."""
    transport = httpx2.HTTPTransport(uds=str(path))
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(transport=transport, base_url="http://vllm", headers=headers) as client:
        wait_until(lambda: _listens(path) and _has_token(client), "vLLM generates a token", START_S)


def _listens(path: Path) -> bool:
    """Whether it accepts connections: httpx2 leaves a socket open where none is accepted."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _has_token(client: httpx2.Client) -> bool:
    body = {"model": "tiny", "prompt": [0], "max_tokens": 1, "ignore_eos": True}
    try:
        return client.post("/v1/completions", json=body, timeout=START_S).is_success
    except httpx2.TransportError:
        return False


def start_after(moment_s: float) -> float:
    """Seconds from the start of the vLLM that this process has started since to its first token."""
    [process, *_] = wait_until(lambda: started_since(moment_s), "vLLM is started again")
    command, key = process.cmdline(), process.environ()["VLLM_API_KEY"]
    wait_for_token(Path(command[command.index("--uds") + 1]), key)
    began_s: float = process.create_time()
    return time.time() - began_s


def started_since(moment_s: float) -> list[psutil.Process]:
    """Servers of vLLM below this process, without their keepers."""
    found = psutil.Process().children(recursive=True)
    titles = {each: _title(each) for each in found if each.create_time() > moment_s}
    return [
        each for each, title in titles.items() if "vllm serve" in title and VICTIMS[-1] not in title
    ]


class Watch:
    """Sees when the server of a model is ready again, and when its vLLM alone would be."""

    def __init__(self, api: LocalClient, others: Executor) -> None:
        self._api, self._others = api, others
        self._began_s: dict[int, float] = {}  # by the number of restarts
        self._killed_s: list[float] = []
        self._own_s: list[Future[float]] = []

    def killed(self) -> None:
        self._killed_s.append(time.monotonic())
        self._own_s.append(self._others.submit(start_after, time.time()))

    @property
    def restarts_s(self) -> list[float]:
        """From each death to the moment at which a request was served again."""
        began_s = [self._began_s[kill + 1] for kill in range(len(self._killed_s))]
        return [again - dead for again, dead in zip(began_s, self._killed_s, strict=True)]

    @property
    def losses_s(self) -> list[float]:
        """How much longer each of them was than the start of its vLLM."""
        own_s = [own.result() for own in self._own_s]
        return [all_s - own for all_s, own in zip(self.restarts_s, own_s, strict=True)]

    def wait(self, num_restarts: int) -> None:
        """Until it has served so long since this restart that earlier deaths do not count."""
        wait_until(lambda: self._is_healthy(num_restarts), "it serves again", START_S)

    def _is_healthy(self, num_restarts: int) -> bool:
        server = self._api.get("/models/tiny").json()["server"]
        if (server["state"], server["num_restarts"]) != ("ready", num_restarts):
            return False
        began_s = self._began_s.setdefault(num_restarts, time.monotonic())
        return time.monotonic() - began_s > HEALTHY_S + 1


def test_a_vllm_that_is_killed_under_load_is_started_again(
    settings: ServeSettings,
    redis_url: str,
    strangers: set[int],
    num_kills: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every request has an end: an output, or 503 with Retry-After.

    It is served again within the time that vLLM takes to start, and 5 s more.
    """
    model = settings.models_dir / "tiny"
    own_s = [own_start_s(model, tmp_path / "before")]
    statuses: list[int] = []
    is_over = threading.Event()

    def ask(api: LocalClient) -> None:
        body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 64, "ignore_eos": True}
        while not is_over.wait(0.05):
            answer = api.post("/generate", json=body)
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
            statuses.append(answer.status_code)

    changed = settings.model_copy(update=OPTIONS)
    with local_api(changed, redis_url) as api, ThreadPoolExecutor() as others:
        assert api.post("/models/tiny/load").status_code == 200
        clients = [threading.Thread(target=ask, args=(api,)) for _ in range(4)]
        for client in clients:
            client.start()
        watch = Watch(api, others)
        try:
            for kill in range(num_kills):
                watch.wait(num_restarts=kill)
                victim(VICTIMS[kill % len(VICTIMS)]).kill()
                watch.killed()
            watch.wait(num_restarts=num_kills)
            count = len(statuses)
            wait_until(lambda: 200 in statuses[count:], "requests are served", START_S)
        finally:
            is_over.set()
        for client in clients:
            client.join(60)
            assert not client.is_alive()
    assert set(statuses) == {200, 503}
    wait_until(lambda: not ours(strangers), "no vLLM is left")
    own_s.append(own_start_s(model, tmp_path / "after"))
    with capsys.disabled():
        sys.stdout.write(
            f"\nvLLM by itself generates after {_seconds(own_s)} s; killed under load, it serves "
            f"again after {_seconds(watch.restarts_s)} s, which is {_seconds(watch.losses_s)} s "
            f"more than its vLLM takes; {statuses.count(200)} requests were served, "
            f"{statuses.count(503)} refused, none without an end\n"
        )
    assert max(watch.losses_s) <= 5


def _seconds(times_s: Sequence[float]) -> str:
    return ", ".join(f"{time_s:.1f}" for time_s in times_s)


def kill_service(
    process: "subprocess.Popen[bytes]",
    client: httpx2.Client,
    strangers: set[int],
    *,
    is_ready: bool,
) -> None:
    """While vLLM starts for a request, or once it has served that."""
    body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}
    statuses: list[int] = []

    def ask() -> None:
        with suppress(httpx2.TransportError):
            statuses.append(client.post("/generate", json=body, timeout=START_S).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    if is_ready:
        asking.join(START_S)
        assert statuses == [200]
    wait_until(lambda: bool(ours(strangers)), "vLLM is there", START_S)
    process.kill()
    asking.join(60)
    wait_until(lambda: not ours(strangers), "no vLLM is left")


def test_no_vllm_is_left_by_a_service_that_is_killed(
    data_dir: Path, strangers: set[int], num_kills: int
) -> None:
    """Every second time it is killed while vLLM starts."""
    variables = {name: str(value) for name, value in OPTIONS.items() if name != "preload"}
    with embedded_valkey(data_dir):  # which survives a service that is killed
        for kill in range(num_kills):
            with serve_process(data_dir, preload="[]", **variables) as (process, client):
                kill_service(process, client, strangers, is_ready=kill % 2 == 0)
