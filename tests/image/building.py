"""Builds the Dockerfile with buildah on a Debian from debootstrap; no engine, no registry."""

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.image.compose import ROOT

PACKAGES = ("buildah", "crun", "debootstrap", "netavark")
BASE, IMAGE = "localhost/sleb-test-base", "localhost/sleb-test"
_PREFIX = Path(sys.base_prefix)
_IS_OF_DEBIAN = sys.base_prefix == "/usr"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP_OPTIONS = ("cert", "extra-index-url", "index-url", "proxy", "timeout", "trusted-host")


@dataclass(frozen=True)
class Image:
    """An unpacked image. Containers mount its root read-only."""

    root: Path
    config: Mapping[str, Any]  # as in `docker inspect`

    @property
    def site_packages(self) -> Path:
        [found] = self.root.glob("opt/sleb/lib/python3.*/site-packages")
        return found


def check_tools() -> None:
    """Fail with the packages to install if a tool is missing."""
    commands = {name: name for name in PACKAGES} | {"netavark": "/usr/lib/podman/netavark"}
    missing = [name for name, command in commands.items() if shutil.which(command) is None]
    if missing:
        pytest.fail(f"apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.fail("`make image-test` has to be root: it makes a Debian, and mounts it")


def built(buildah: "Buildah", arguments: Mapping[str, str]) -> Image:
    """Build the image for the CPU with these build arguments. An existing base is reused."""
    directory = buildah.directory
    if not buildah.has(BASE):
        buildah.load(_debian(directory), BASE)
    index = _torch_index(directory)
    if index is not None:
        arguments = {**arguments, "TORCH_CPU_INDEX": "file:///torch"}
        buildah.mounts.append(f"{index}:/torch:ro")
    buildah.build({**arguments, "BASE": BASE, "TORCH": "cpu"}, _pip_config(directory))
    return buildah.unpacked()


class Buildah:
    """Runs buildah with one layer per stage, because vfs copies all layers below each one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "tmp").mkdir(parents=True, exist_ok=True)
        places = ["--root", str(directory / "store"), "--runroot", str(directory / "run")]
        variables = ["BUILDAH_ISOLATION=chroot", f"TMPDIR={directory / 'tmp'}"]
        self._command = ["env", *variables, "buildah", "--storage-driver", "vfs", *places]
        self.mounts = [f"{_CERTIFICATES}:{_CERTIFICATES}:ro"] if _CERTIFICATES.exists() else []

    def has(self, image: str) -> bool:
        return self._run("images", "--quiet", image, check=False) != ""

    def load(self, root: Path, name: str) -> None:
        container = self._run("from", "scratch")
        self._run("copy", container, str(root), "/")
        self._run("commit", "--rm", container, name)

    def build(self, arguments: Mapping[str, str], pip_config: Path) -> None:
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={mount}" for mount in self.mounts]
        options += _limits()
        options += ["--layers=false", "--format=docker", f"--secret=id=pip.conf,src={pip_config}"]
        self._run("build", *options, f"--tag={IMAGE}", str(ROOT), is_shown=True)

    def unpacked(self) -> Image:
        found = json.loads(self._run("inspect", "--type=image", IMAGE))
        container = self._run("from", IMAGE)
        return Image(Path(self._run("mount", container)), found["Docker"]["config"])

    def install(
        self, base: str, name: str, *packages: str, folder: str, owner: str, entrypoint: str = ""
    ) -> None:
        """Build an image of Debian packages, with a folder as the content of new volumes."""
        container = self._run("from", *_limits(), base)
        command = (
            f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(packages)} "
            f"&& install --directory {folder} && chown {owner} {folder}"
        )
        self._run("run", container, "sh", "-c", command)
        started = json.dumps([entrypoint] if entrypoint else [])
        options = ["--user", owner, "--workingdir", folder, "--entrypoint", started]
        self._run("config", *options, container)
        self._run("commit", "--format=docker", "--rm", container, name)

    def save(self, image: str, archive: Path, name: str) -> None:
        """Write an archive for ``docker load`` with this image name."""
        self._run("push", image, f"docker-archive:{archive}:{name}")

    def clean(self) -> None:
        """Remove containers and images that are not used again."""
        self._run("rm", "--all")
        self._run("rmi", "--prune")

    def _run(self, *arguments: str, check: bool = True, is_shown: bool = False) -> str:
        ran = subprocess.run(
            [*self._command, *arguments],
            stdout=None if is_shown else subprocess.PIPE,
            text=True,
            check=check,
        )
        return (ran.stdout or "").strip()


def _limits() -> list[str]:
    """Limits as options of buildah, whose defaults exceed those of a container."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    most = {name: resource.getrlimit(kind)[1] for name, kind in kinds.items()}
    return [f"--ulimit={name}={limit}:{limit}" for name, limit in most.items()]


def _debian(directory: Path) -> Path:
    """Create a Debian of this machine's release and Python, which match its cached wheels."""
    root = directory / "debian"
    if (directory / "debian-is-whole").exists():
        return root
    packages = ["ca-certificates", *(["python3", "python3-venv"] if _IS_OF_DEBIAN else [])]
    system = platform.freedesktop_os_release()
    suite = system["VERSION_CODENAME"] if system["ID"] == "debian" else "stable"
    include = f"--include={','.join(packages)}"
    command = ["debootstrap", "--variant=minbase", include, suite, str(root)]
    subprocess.run(command, check=True)
    shutil.rmtree(root / "var/lib/apt/lists")  # absent in Debian images
    if not _IS_OF_DEBIAN:
        _add_python(root)
    (directory / "debian-is-whole").touch()
    return root


def _add_python(root: Path) -> None:
    """Copy this Python and its libraries to where Python images have it."""
    local = root / "usr/local"
    unused = shutil.ignore_patterns("site-packages", "test", "config-*", "__pycache__", "_tkinter*")
    shutil.copytree(
        _PREFIX / "lib", local / "lib", symlinks=True, dirs_exist_ok=True, ignore=unused
    )
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(_PREFIX / "bin" / name, local / "bin")
    (local / "bin" / "python3").symlink_to(name)
    modules = [str(file) for file in (local / "lib" / name / "lib-dynload").glob("*.so")]
    command = ["ldd", str(_PREFIX / "bin" / name), *modules]
    needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for library in set(re.findall(r"=> (/\S+)", needed)):
        if not (root / library.lstrip("/")).exists():
            shutil.copy(library, local / "lib")
    subprocess.run(["chroot", root, "ldconfig"], check=True)


def _torch_index(directory: Path) -> Path | None:
    """A local index with the CPU build of torch, if pip finds its wheel on this machine's disk."""
    found = _pip(
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
        "--report=-",
        "--only-binary=:all:",
        "torch",
    )
    [torch] = json.loads(found)["install"]
    url = urlsplit(torch["download_info"]["url"])
    if url.scheme != "file" or "%2Bcpu" not in url.path:
        return None
    wheel = Path(unquote(url.path))
    page = directory / "index" / "torch"
    page.mkdir(parents=True, exist_ok=True)
    shutil.copy(wheel, page)
    (page / "index.html").write_text(f'<a href="{Path(url.path).name}">{wheel.name}</a>')
    return page.parent


def _pip_config(directory: Path) -> Path:
    """The network options of pip, without its local paths of wheels."""
    options: dict[str, str] = {}
    for line in _pip("config", "list").splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _PIP_OPTIONS:
            options[option] = value.strip("'")
    target = directory / "pip.conf"
    lines = [f"{name} = {value}" for name, value in options.items()]
    target.write_text("\n".join(["[global]", *lines, ""]))
    return target


def _pip(*arguments: str) -> str:
    command: Sequence[str] = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
