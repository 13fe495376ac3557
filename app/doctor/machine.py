"""The doctor's looks at the machine: packages, disk, memory, ports and open files."""

import errno
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import httpx2
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from app.doctor.finding import Finding, fine, note, size, wrong

_OURS = "sleb-serve"
_MIN_FREE_BYTES = 10**9  # logs, the store, a small checkpoint
_BESIDE_REQUESTS = 256  # open files for weights, Redis, watchers and logs


def packages(required: Sequence[str] | None = None) -> Finding:
    """Whether what is installed is what this version was made for, by default its own list."""
    wanted = map(Requirement, (requires(_OURS) or ()) if required is None else required)
    needed = [its for its in wanted if its.marker is None or its.marker.evaluate({"extra": ""})]
    complaints = [said for its in needed if (said := _complaint(its))]
    python = platform.python_version()
    if not SpecifierSet(metadata(_OURS)["Requires-Python"]).contains(python, prereleases=True):
        complaints.append(f"Python {python} is too old")
    if complaints:
        advice = f"install {_OURS} again, in an environment of its own with a Python that it takes"
        return wrong("packages", "; ".join(complaints), advice)
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return fine("packages", f"Python {python}, {shown}, all {len(needed)} as required")


def extras(needed: Mapping[str, str]) -> Finding:
    """``needed``: what has to be installed, to what asks for it."""
    absent = [name for name in needed if _found(name) is None]
    if absent:
        said = "; ".join(f"{needed[name]} is set, but {name} is not installed" for name in absent)
        advice = (
            "pip install the extra it belongs to (cluster, otel or eval), or unset the variable"
        )
        return wrong("extras", said, advice)
    return fine("extras", "all that the settings ask for")


def writable(directory: Path) -> Finding:
    """Try it, as permissions alone do not tell; creates the directory if it is not there."""
    check = f"directory {directory.name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".doctor-"):
            pass
    except OSError as error:
        said = f"{directory} cannot be written: {error.strerror}"
        return wrong(check, said, "give this user the right to write, or set SLEB_DATA_DIR")
    return fine(check, f"{directory} can be written")


def disk(directory: Path, largest_bytes: int) -> Finding:
    """Room for a checkpoint as large as the largest model."""
    there = next(its for its in (directory, *directory.parents) if its.exists())
    free = shutil.disk_usage(there).free
    needed = max(largest_bytes, _MIN_FREE_BYTES)
    said = f"{size(free)} free in {there}"
    if free < needed:
        advice = f"free {size(needed - free)}, as a checkpoint may need; or set SLEB_DATA_DIR"
        return wrong("disk", said, advice)
    return fine("disk", said)


def memory(weights: Mapping[str, int], preloaded: Sequence[str], room_bytes: int) -> Finding:
    """``weights``: bytes of each dense model; ``room_bytes``: all that the device may hold."""
    if too_large := sorted(name for name, num_bytes in weights.items() if num_bytes > room_bytes):
        said = f"{', '.join(too_large)}: more weights than the {size(room_bytes)} there are"
        advice = (
            "they cannot be served here, only pruned with --resident stream: leave them out of "
            "SLEB_PRELOAD, or give more memory or SLEB_MAX_WEIGHT_BYTES"
        )
        return wrong("memory", said, advice)
    wanted = sum(weights.get(name, 0) for name in preloaded)
    said = f"{size(wanted)} of weights to preload, {size(room_bytes)} of memory"
    if wanted > room_bytes:
        return note("memory", said, "not all fit at once: name those that should in SLEB_PRELOAD")
    return fine("memory", said)


def port(variable: str, host: str, number: int, sign_of_us: str) -> Finding:
    """Whether it can be listened on, or the service that does is one of ours.

    ``sign_of_us`` is a metric that it shows then.
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
        if error.errno == errno.EADDRINUSE and _shows(host, number, sign_of_us):
            return fine(check, f"{variable}: a service of ours listens there already")
        said = f"{variable}: cannot listen on {host}, port {number}: {error.strerror}"
        return wrong(check, said, f"stop what does, or set {variable} or SLEB_HOST to another")
    return fine(check, f"{variable}: free on {host}")


def open_files(num_requests: int, limit: int | None = None) -> Finding:
    """``num_requests`` at once, each with a connection; by default the limit of this process."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    needed = num_requests + _BESIDE_REQUESTS
    if soft != resource.RLIM_INFINITY and soft < needed:
        said = f"{soft} open files are allowed, {needed} may be needed"
        advice = f"raise it with ulimit -n {needed}, or lower SLEB_MAX_WAITING"
        return wrong("open files", said, advice)
    allowed = "any number" if soft == resource.RLIM_INFINITY else str(soft)
    return fine("open files", f"{allowed} allowed, {needed} needed at most")


def _complaint(wanted: Requirement) -> str | None:
    found = _found(wanted.name)
    if found is None:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(found, prereleases=True):
        return f"{wanted.name} is {found}, expected {wanted.specifier}"
    return None


def _found(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _shows(host: str, number: int, metric: str) -> bool:
    there = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what it means
    url = f"http://[{there}]:{number}" if ":" in there else f"http://{there}:{number}"
    try:
        return metric in httpx2.get(f"{url}/metrics", timeout=2).text
    except httpx2.HTTPError:
        return False
