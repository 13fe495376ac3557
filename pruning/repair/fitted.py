"""The layers of a block that ridge fits anew, as one linear layer that writes into the stream.

A norm behind a layer multiplies each channel by its weight and each token by a factor, and a gate
multiplies each token. With the factors of tokens held at their values, what is written is linear:
the inputs of all layers side by side, each times the factor of its token. A change of the matrix of
that one layer is a change of each layer, divided by the weights of the norm behind it. The norm
then sees larger or smaller tokens, so its weights are multiplied by what their mean square becomes.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedConfig

from pruning.models.architectures import architecture
from pruning.models.blocks import BlockCall, with_own
from pruning.models.layout import Fitted

# A channel whose weight in the norm is small would need large values in front of it, and these
# would make all others smaller. This share of the mean square is added to the square of a weight.
_DAMPING = 0.01

TappedCall = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class FittedLayers:
    """The layers of ``block`` that are fitted, as one layer from ``width_in`` to ``width_out``.

    Matrices are those of the layer as it writes into the stream.
    """

    def __init__(self, block: nn.Module, config: PreTrainedConfig) -> None:
        writes = architecture(config).writes
        self._block = block
        self._multiplier = writes.factor(config)
        self._is_transposed = writes.is_transposed
        self._offset = writes.offset
        self._layers = tuple(each for each in writes.refit if _has(block, each.layer))
        assert self._layers, f"no layer of a {type(block).__name__} can be fitted"
        self._widths = [self._matrix(each).shape[1] for each in self._layers]
        self.width_in = sum(self._widths)
        self.width_out = self._matrix(self._layers[0]).shape[0]

    @property
    def num_parameters(self) -> int:
        """Those that a fit changes."""
        norms = (self._norm(each) for each in self._layers)
        return self.width_in * self.width_out + sum(n.numel() for n in norms if n is not None)

    def tapped(self, call: BlockCall) -> TappedCall:
        """The call of the block that also returns what the layer reads, both [..., width]."""
        block = with_own(call.block, {})
        heard: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def hear(
            path: str, _: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> None:
            heard[path] = args[0], output

        for each in self._layers:
            for path in (each.layer, each.norm, each.gate):
                if _has(block, path):
                    block.get_submodule(path).register_forward_hook(partial(hear, path))
        again = call.of(block)

        def run(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = again(hidden)
            parts = [self._read(each, heard) for each in self._layers]
            read = torch.cat([part.view(*output.shape[:-1], -1) for part in parts], dim=-1)
            heard.clear()
            return output, read

        return run

    def changed(self, change: torch.Tensor, gram: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters, by their names in the block, with this change of the matrix.

        ``gram`` [width_in, width_in] is that of what was read, by which norms are corrected.
        """
        parameters, begin = {}, 0
        for each, part in zip(self._layers, change.split(self._widths, dim=1), strict=True):
            old = self._matrix(each).float()
            new = old + self._inverse_gain(each, part).to(old.device) / self._multiplier
            end = begin + old.shape[1]
            if (norm := self._norm(each)) is not None:
                own = gram[begin:end, begin:end].to(old.device)
                grown = (((new @ own) * new).sum() / ((old @ own) * old).sum()).sqrt()
                weight = (norm.float() + self._offset) * grown - self._offset
                parameters[f"{each.norm}.weight"] = weight.to(norm.dtype)
            new = new.T if self._is_transposed else new
            parameters[f"{each.layer}.weight"] = new.to(self._matrix(each).dtype)
            begin = end
        return parameters

    def _matrix(self, each: Fitted) -> torch.Tensor:
        """[width_out, width_in], as long as the block has its weights."""
        weight = self._block.get_parameter(f"{each.layer}.weight")
        return weight.T if self._is_transposed else weight

    def _norm(self, each: Fitted) -> torch.Tensor | None:
        """The parameter of the norm behind a layer, if there is one."""
        if not _has(self._block, each.norm):
            return None
        return self._block.get_submodule(each.norm)._parameters.get("weight")

    def _inverse_gain(self, each: Fitted, part: torch.Tensor) -> torch.Tensor:
        """What has to change in front of the norm for this change behind it."""
        if (norm := self._norm(each)) is None:
            return part
        gain = norm.to(part.device, torch.float32) + self._offset
        square = gain.square()
        return part * (gain / (square + _DAMPING * square.mean())).unsqueeze(1)

    def _read(
        self, each: Fitted, heard: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        read, _ = heard[each.layer]
        if (norm := self._norm(each)) is not None:
            before, behind = (tensor.float() for tensor in heard[each.norm])
            weighted = before * (norm.float() + self._offset)
            square = weighted.square().sum(-1)
            factor = (weighted * behind).sum(-1) / square.clamp_min(torch.finfo(square.dtype).tiny)
            read = read * factor.view(read.shape[:-1]).unsqueeze(-1)
        if each.gate in heard:
            _, gate = heard[each.gate]
            read = read * gate.sigmoid().view(read.shape[:-1]).unsqueeze(-1)
        return read


def _has(block: nn.Module, path: str) -> bool:
    """Whether the block has a module of this name, which may be empty."""
    parent, _, name = path.rpartition(".")
    try:
        return bool(path) and block.get_submodule(parent)._modules.get(name) is not None
    except AttributeError:
        return False
