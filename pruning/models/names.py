"""Names of variants.

==============  ==================================================================================
``NAME``        the dense model
``NAME@-k``     without the first ``k`` blocks of the newest published removal order of the model
``NAME@JOB``    without all blocks that a job removed, which is also the name of its checkpoint
``NAME@JOB-k``  without the first ``k`` of those blocks
``NAME-k``      the same of a checkpoint whose name has no ``@``; see ``split_depth``
==============  ==================================================================================

A pruned variant is repaired if its job repaired it. ``+raw`` behind its name means the same blocks
without the repair. ``+int8`` at the end of any name means the same model with int8 weights.

``NAME@JOB+healed`` is the checkpoint after healing. If all depths were healed, then also
``NAME@JOB+healed-k`` is one, and ``NAME@-k+healed`` is that of the newest such checkpoint.
"""

import re
from dataclasses import dataclass
from typing import Self

_PREFIX = re.compile(r"(?P<checkpoint>.*[^-@])-(?P<depth>[0-9]{1,4})")
_NEWEST = re.compile(r"(?P<model>[^@]*)@-(?P<depth>[0-9]{1,4})(?P<healed>\+healed)?")
_OF_JOB = re.compile(
    r"(?P<model>[^@]*)@(?P<job>.+?)(?P<healed>\+healed)?(?:-(?P<depth>[0-9]{1,4}))?"
)
_RAW = "+raw"
_INT8 = "+int8"
_HEALED = "+healed"
_DENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class VariantName:
    """The parts of a name, which ``str`` joins again."""

    model: str
    job: str | None = None
    depth: int | None = None  # None: all blocks, or, with a job, all that it removed
    is_raw: bool = False  # without repair
    is_int8: bool = False
    is_healed: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse any of the forms above; every other text is the name of a dense model.

        The model may be omitted: ``@-6`` is that variant of any model.
        """
        plain, is_int8 = split_int8(text)
        name, is_raw = split_raw(plain)
        match = _NEWEST.fullmatch(name) or _OF_JOB.fullmatch(name)
        if match is None:
            return cls(plain, is_int8=is_int8)
        parts = match.groupdict()
        depth = int(parts["depth"]) if parts["depth"] else None
        is_healed = parts["healed"] is not None
        return cls(parts["model"], parts.get("job"), depth, is_raw, is_int8, is_healed)

    @property
    def is_dense(self) -> bool:
        return self.job is None and self.depth is None

    @classmethod
    def of_checkpoint(cls, name: str) -> Self:
        """Parse the name of a checkpoint, whose job may end like a depth."""
        model, _, job = name.removesuffix(_HEALED).partition("@")
        return cls(model, job or None, is_healed=name.endswith(_HEALED))

    def __str__(self) -> str:
        depth = "" if self.depth is None else f"-{self.depth}"
        healed = _HEALED if self.is_healed else ""
        of_job = f"@{self.job}{healed}{depth}" if self.job else f"@{depth}{healed}"
        name = self.model if self.is_dense else f"{self.model}{of_job}"
        name = raw_name(name) if self.is_raw else name
        return int8_name(name) if self.is_int8 else name


def is_name(text: str) -> bool:
    """Whether a dense model, or an alias, may have this name."""
    return _DENSE.fullmatch(text) is not None


def raw_name(name: str) -> str:
    """The name of the same blocks without repair."""
    plain, is_int8 = split_int8(name)
    return int8_name(f"{plain}{_RAW}") if is_int8 else f"{plain}{_RAW}"


def int8_name(name: str) -> str:
    """The name of the same model with int8 weights."""
    return f"{name}{_INT8}"


def split_int8(text: str) -> tuple[str, bool]:
    """The name without ``+int8``, and whether it had it."""
    return text.removesuffix(_INT8), text.endswith(_INT8)


def healed_name(name: str) -> str:
    """The name of the checkpoint ``name`` after healing."""
    return f"{name}{_HEALED}"


def unhealed_name(name: str) -> str:
    """The name of the checkpoint that ``name`` was healed from; other names stay."""
    return name.removesuffix(_HEALED)


def split_raw(text: str) -> tuple[str, bool]:
    """The name without ``+raw``, and whether it had it. No name of a model or job has a plus."""
    return text.removesuffix(_RAW), text.endswith(_RAW)


def split_depth(text: str) -> tuple[str, int] | None:
    """The checkpoint and the depth of ``CHECKPOINT-k``; None for other texts.

    Only the store knows whether there is such a checkpoint: a dense model may be ``tiny-135``.
    """
    match = _PREFIX.fullmatch(text)
    return (match["checkpoint"], int(match["depth"])) if match else None
