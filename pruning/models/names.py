"""Names of variants.

==============  ==================================================================================
``NAME``        the dense model
``NAME@-k``     without the first ``k`` blocks of the newest published removal order of the model
``NAME@JOB``    without all blocks that a job removed, which is also the name of its checkpoint
``NAME@JOB-k``  without the first ``k`` of those blocks
==============  ==================================================================================
"""

import re
from dataclasses import dataclass
from typing import Self

_VARIANT = re.compile(r"(?P<model>[^@]*)@(?=.)(?P<job>.*?)(?:-(?P<depth>[0-9]{1,4}))?")


@dataclass(frozen=True)
class VariantName:
    """The parts of a name; ``str`` puts them together again."""

    model: str
    job: str | None = None
    depth: int | None = None  # None: all blocks, or, with a job, all that it removed

    @classmethod
    def parse(cls, text: str) -> Self:
        """A text of none of the forms is the name of a dense model.

        The model may be left out: ``@-6`` is that variant of any model.
        """
        match = _VARIANT.fullmatch(text)
        if match is None:
            return cls(text)
        depth = match["depth"]
        return cls(match["model"], match["job"] or None, int(depth) if depth else None)

    @classmethod
    def of_checkpoint(cls, name: str) -> Self:
        """The name of a whole checkpoint, whose last part may look like a depth."""
        model, _, job = name.partition("@")
        return cls(model, job or None)

    def __str__(self) -> str:
        job = self.job or ""
        if self.depth is not None:
            return f"{self.model}@{job}-{self.depth}"
        return f"{self.model}@{job}" if job else self.model
