"""The NVIDIA driver of this machine, read without NVML, and the one that torch needs."""

import logging
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from packaging.version import Version

logger = logging.getLogger(__name__)

VERSION_FILE = Path("/proc/driver/nvidia/version")
_VERSION = re.compile(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)\s", re.MULTILINE)
# NVIDIA's table of minor version compatibility, for Linux, by the major version of CUDA
_OLDEST = MappingProxyType({11: "450.80.02", 12: "525.60.13", 13: "580"})
_OLDEST_CUDA = 12  # of the builds of torch that this project supports


@dataclass(frozen=True)
class OldDriver:
    """A driver that cannot run a torch that is built for this version of CUDA."""

    version: str
    cuda: str
    needed: str

    @property
    def said(self) -> str:
        return (
            f"the NVIDIA driver is {self.version}, but torch was built for CUDA {self.cuda}, which "
            f"needs driver {self.needed} or newer"
        )

    @property
    def advice(self) -> str:
        oldest = _OLDEST[_OLDEST_CUDA]
        if Version(self.version) < Version(oldest):
            return f"update the driver: torch 2.9 and newer need driver {oldest} or newer"
        return (
            "update the driver, or install a torch for this driver with "
            "`uv pip install --reinstall --torch-backend auto torch`"
        )


def driver_version() -> str | None:
    """Such as ``580.65.06``; None without a driver."""
    try:
        text = VERSION_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = _VERSION.search(text)
    return None if found is None else found[1]


def old_driver(driver: str | None, cuda: str | None) -> OldDriver | None:
    """What is wrong if ``driver`` is too old for a torch that is built for ``cuda``."""
    if driver is None or cuda is None:
        return None
    needed = _OLDEST.get(Version(cuda).major)
    if needed is None or Version(driver) >= Version(needed):
        return None
    return OldDriver(driver, cuda, needed)


@cache
def warn_of_old_driver(cuda: str | None) -> None:
    """Log once if the driver is the reason why torch can use no GPU."""
    found = old_driver(driver_version(), cuda)
    if found is not None:
        logger.warning("%s: the CPU is used; %s", found.said, found.advice)
