"""A repaired model: as parameters in place of those of the dense one, and as a view of it.

A scale of the stream behind a cut is not a parameter. In a plain model, what later blocks add is
divided by it instead. Behind the last norm, which no factor of the stream passes, that is the same
up to the norm's epsilon. It changes tensors of every later block, so a view multiplies the stream.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.blocks import view
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks

Read = Callable[[Iterable[str]], Iterator[tuple[str, torch.Tensor]]]  # parameters by names


@dataclass(frozen=True, eq=False)
class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors by name, each of which is made when it is read.

    So writing them one by one takes the memory of one.
    """

    names: Mapping[str, object]
    make: Callable[[str], torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def folded(
    model: PreTrainedModel, keep: Blocks, repaired: Repaired, read: Read | None = None
) -> LazyTensors:
    """The tensors of the repaired model that keeps ``keep``, in place of dense parameters.

    They have the dtype and the device of these, which ``read`` reads where ``model`` has no values
    in memory.
    """
    read, offset = read or reader_of(model), architecture(model.config).writes.offset
    factors, tensors = _factors(model, keep, repaired), repaired.tensors

    def made(name: str) -> torch.Tensor:
        [(_, dense)] = read([name])
        values = tensors[name].to(dense.device) if name in tensors else dense
        if name in factors:
            values = (values.float() + offset) * factors[name] - offset
        return values.to(dense.dtype)

    return LazyTensors(dict.fromkeys([*tensors, *factors]), made)


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
