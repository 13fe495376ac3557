"""A repaired model: as parameters in place of those of the dense one, and as a view of it.

A scale of the stream behind a cut is not a parameter. In a plain model, what later blocks add is
divided by it instead. Behind the last norm, which no factor of the stream passes, that is the same
up to the norm's epsilon. It changes tensors of every later block, so a view multiplies the stream.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from transformers import PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.blocks import view
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks

Read = Callable[[Iterable[str]], Iterator[tuple[str, torch.Tensor]]]  # parameters by names


class Folded(Mapping[str, torch.Tensor]):
    """The tensors of a repaired model, by the names of the dense parameters that they replace.

    A tensor is made when it is read, so that writing them one by one takes the memory of one. It
    has the dtype and the device of the dense parameter.
    """

    def __init__(
        self, model: PreTrainedModel, keep: Blocks, repaired: Repaired, read: Read
    ) -> None:
        self._offset = architecture(model.config).writes.offset
        self._factors = _factors(model, keep, repaired)
        self._tensors = repaired.tensors
        self._read = read

    def __getitem__(self, name: str) -> torch.Tensor:
        factor, changed = self._factors.get(name), self._tensors.get(name)
        if factor is None and changed is None:
            raise KeyError(name)
        [(_, dense)] = self._read([name])
        values = dense if changed is None else changed.to(dense.device)
        if factor is not None:
            values = (values.float() + self._offset) * factor - self._offset
        return values.to(dense.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._tensors), **dict.fromkeys(self._factors)})

    def __len__(self) -> int:
        return len({*self._tensors, *self._factors})


def folded(
    model: PreTrainedModel, keep: Blocks, repaired: Repaired, read: Read | None = None
) -> Folded:
    """The tensors of the repaired model that keeps ``keep``.

    ``read`` reads dense parameters, where ``model`` has no values in memory.
    """
    return Folded(model, keep, repaired, read or reader_of(model))


def reader_of(model: PreTrainedModel) -> Read:
    """Reads the parameters of a model in memory."""

    def read(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, model.get_parameter(name)) for name in names)

    return read


def repaired_view(model: PreTrainedModel, keep: Blocks, repaired: Repaired) -> PreTrainedModel:
    """The repaired model that keeps ``keep``, in the dtype and on the device of ``model``.

    It shares all weights but the refitted ones. A scale takes no tensor: the block behind the cut
    multiplies its input.
    """
    own = {
        # a copy, as the pages of a tensor from a file change with the file
        name: tensor.to(model.device, model.dtype, copy=True)
        for name, tensor in repaired.tensors.items()
    }
    return view(model, keep, own, scales_of(keep, repaired))


def scales_of(keep: Blocks, repaired: Repaired) -> dict[int, float]:
    """The factors of the inputs of kept blocks."""
    return {cut.after: scale for cut, scale in repaired.scales.items() if cut.after in keep}


def _factors(model: PreTrainedModel, keep: Blocks, repaired: Repaired) -> dict[str, float]:
    """The factor of each parameter behind a cut that writes into the stream."""
    row = architecture(model.config)
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    scales = {cut.before: scale for cut, scale in repaired.scales.items()}
    factors: dict[str, float] = {}
    factor = 1.0
    for block in keep:
        if factor != 1.0:
            names = (f"{row.blocks}.{block}.{name}" for name in row.writes.scaled)
            factors |= {name: factor for name in names if name in known}  # not every bias exists
        factor /= scales.get(block, 1.0)
    return factors
