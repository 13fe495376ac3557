"""The doctor's checks of the machine: packages, disk, memory, ports and open files."""

import errno
import itertools
import platform
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import httpx2
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from app.doctor.finding import Finding, detail, fine, note, size, wrong
from app.engine.autotuning import Choice
from app.engine.kernels.compiled.compilation import CompilationState, kept_state
from app.engine.kernels.compiled.model import BLOCKS
from app.engine.kernels.compiled.openmp import has_openmp, keep_compiled_in
from pruning.extras import EXTRAS, has_extra, install_command

_OURS = "sleb-serve"
_MIN_FREE_BYTES = 10**9  # for logs, the job store and a small checkpoint
_OTHER_FILES = 256  # open files for weights, Redis, watchers and logs


def packages(required: Sequence[str] | None = None) -> Finding:
    """Check the installed packages against requirements, by default those of this version."""
    listed = map(Requirement, (requires(_OURS) or ()) if required is None else required)
    needed = [one for one in listed if one.marker is None or one.marker.evaluate({"extra": ""})]
    complaints = [said for one in needed if (said := _complaint(one))]
    python = platform.python_version()
    if not SpecifierSet(metadata(_OURS)["Requires-Python"]).contains(python, prereleases=True):
        complaints.append(f"Python {python} is too old")
    if complaints:
        advice = f"reinstall {_OURS} in its own environment, with a supported Python version"
        return wrong("packages", "; ".join(complaints), advice)
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return fine("packages", f"Python {python}, {shown}, all {len(needed)} requirements met")


def extras(needed: Mapping[str, str]) -> list[Finding]:
    """List all extras. ``needed``: some, each with the setting that requires it."""
    absent = [name for name in EXTRAS if not has_extra(name)]
    if lacking := [name for name in needed if name in absent]:
        said = "; ".join(
            f"{needed[name]} is set, but extra {name} is not installed" for name in lacking
        )
        return [wrong("extras", said, f"{install_command(*lacking)}, or unset the variable")]
    installed = ", ".join(name for name in EXTRAS if name not in absent) or "none"
    others = [f"{name}, for {EXTRAS[name].purpose}" for name in absent]
    return [
        fine("extras", f"installed: {installed}"),
        *([detail("extras not installed", "\n".join(others))] if others else []),
    ]


def kernels(choices: Mapping[str, Choice]) -> Finding:
    """Which kernels were chosen on this processor, and by how much."""
    if not choices:
        said = "none selected on this processor yet: kernels are selected when a model is served"
        return detail("kernels", said)
    return detail("kernels", "\n".join(itertools.starmap(_choice, choices.items())))


def compiled(setting: str, data_dir: Path) -> Finding:
    """For which types of models blocks are compiled, for steps on a CPU."""
    if setting == "off":
        return detail("compiled blocks", "none: SLEB_TUNE is off")
    if not has_openmp():
        said = "none: torch does not use GCC's OpenMP library"
        return note(
            "compiled blocks",
            said,
            "decoding on the CPU is slower; the Linux builds of torch have it",
        )
    keep_compiled_in(data_dir)
    state = kept_state(data_dir)
    if state is not None and state.state == "failed":
        said = f"compilation failed: {state.reason}"
        return note("compiled blocks", said, f"decoding uses torch's operations; {_next(state)}")
    if state is not None and state.state == "compiling":
        return detail("compiled blocks", "being compiled now, or a service stopped while compiling")
    kept = [str(dtype).removeprefix("torch.") for dtype, each in BLOCKS.items() if each.is_kept]
    if not kept:
        said = "none yet: blocks are compiled when a model is served for the first time"
        return detail("compiled blocks", said)
    return detail("compiled blocks", f"compiled for {' and '.join(kept)}")


def products(fastest: str) -> Finding:
    """In which type, as ``fastest_dtype`` says, the device multiplies matrices faster."""
    if fastest == "bfloat16":
        return detail("products", "bfloat16 matrix products are faster than float32")
    said = (
        "float32 matrix products are faster than bfloat16: with dtype float32, pruning a bfloat16"
    )
    return detail("products", f"{said} model takes less time and twice the memory")


def writable(directory: Path) -> Finding:
    """Write a file, as permissions alone do not prove it. Creates a missing directory."""
    check = f"directory {directory.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".doctor-"):
            pass
    except OSError as error:
        said = f"cannot write to {directory}: {error.strerror}"
        return wrong(check, said, "give this user write permission, or set SLEB_DATA_DIR")
    return fine(check, f"{directory} is writable")


def disk(directory: Path, largest_bytes: int) -> Finding:
    """Check that a checkpoint as large as the largest model fits."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = max(largest_bytes, _MIN_FREE_BYTES)
    said = f"{size(free)} free in {existing}"
    if free < needed:
        advice = f"free another {size(needed - free)} for a checkpoint, or set SLEB_DATA_DIR"
        return wrong("disk", said, advice)
    return fine("disk", said)


def memory(weights: Mapping[str, int], preloaded: Sequence[str], memory_bytes: int) -> Finding:
    """``weights``: bytes of each dense model; ``memory_bytes``: the most the device may hold."""
    if too_large := sorted(name for name, num_bytes in weights.items() if num_bytes > memory_bytes):
        said = (
            f"{', '.join(too_large)}: the weights exceed the available memory of "
            f"{size(memory_bytes)}"
        )
        advice = (
            "these models can be pruned with --resident stream, but not served here: "
            "remove them from SLEB_PRELOAD, add memory, or raise SLEB_MAX_WEIGHT_BYTES"
        )
        return wrong("memory", said, advice)
    wanted = sum(weights.get(name, 0) for name in preloaded)
    said = f"{size(wanted)} of weights to preload, {size(memory_bytes)} of memory"
    if wanted > memory_bytes:
        return note(
            "memory", said, "the models do not all fit into memory: list fewer in SLEB_PRELOAD"
        )
    return fine("memory", said)


def port(variable: str, host: str, number: int, metric: str) -> Finding:
    """Check that the port is free, or that this service already listens there.

    ``metric`` is one that the service exports on this port.
    """
    check = f"port {number}"
    if number == 0:
        return fine(variable, "no fixed port")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, number))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and metric in (asked(host, number, "/metrics") or ""):
            return fine(check, f"{variable}: this service is already listening")
        said = f"{variable}: cannot listen on port {number} of {host}: {error.strerror}"
        return wrong(
            check, said, f"stop the process that uses the port, or change {variable} or SLEB_HOST"
        )
    return fine(check, f"{variable}: free on {host}")


def open_files(num_requests: int, limit: int | None = None) -> Finding:
    """Check the limit for ``num_requests`` connections; by default the limit of this process."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    needed = num_requests + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        said = f"at most {soft} open files are allowed, but {needed} may be needed"
        advice = f"raise it with ulimit -n {needed}, or lower SLEB_MAX_WAITING"
        return wrong("open files", said, advice)
    allowed = "any number" if soft == resource.RLIM_INFINITY else str(soft)
    return fine("open files", f"{allowed} allowed, at most {needed} needed")


def _choice(key: str, choice: Choice) -> str:
    """As `decode attention 8 x 64: sdpa, 1.20 × as fast as two products`, one line for each."""
    others = {name: seconds for name, seconds in choice.seconds.items() if name != choice.kernel}
    ratios = [
        f"{seconds / choice.seconds[choice.kernel]:.2f} × as fast as {name}"
        for name, seconds in others.items()
    ]
    doubt = [] if choice.is_firm else ["to be measured again: its times varied"]
    return f"{key}: {', '.join([choice.kernel, *ratios, *doubt])}"


def _next(state: CompilationState) -> str:
    if state.retry_at is None:
        return "restart the service to try again"
    return f"the service will retry in {max(state.retry_at - time.time(), 0):.0f} s"


def _complaint(wanted: Requirement) -> str | None:
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(installed, prereleases=True):
        return f"{wanted.name} is {installed}, expected {wanted.specifier}"
    return None


def asked(host: str, number: int, path: str) -> str | None:
    """What a service says at this path of itself to anybody, without a key.

    None if nothing at this port speaks HTTP.
    """
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - any address
    place = f"[{address}]:{number}" if ":" in address else f"{address}:{number}"
    for scheme in ("http", "https"):
        try:
            # nothing secret is sent: whose certificate it is does not matter here
            return httpx2.get(f"{scheme}://{place}{path}", timeout=2, verify=False).text
        except httpx2.HTTPError:
            continue
    return None
