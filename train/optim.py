"""The optimisers: Muon on the convolutions' weights, Adam on everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Select = Callable[[Tensor], Tensor]


def _matrices(module: nn.Module) -> Iterator[tuple[nn.Parameter, Select]]:
    """Each convolution's weight as matrices (outputs × inputs·k²), as (parameter, view of it) pairs.

    A convolution that feeds a `PixelShuffle` by s is s² convolutions side by side, one per phase; each is its own matrix.
    """
    children = [m for m in module.modules() if not list(m.children())]
    for layer, after in zip(children, [*children[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            phases = after.upscale_factor**2 if isinstance(after, nn.PixelShuffle) else 1
            outputs = layer.out_channels // phases
            # The last layer has three outputs a phase, too few to orthogonalise; there it is one matrix.
            phases, outputs = (phases, outputs) if outputs >= 16 else (1, layer.out_channels)
            for phase in range(phases):

                def select(w: Tensor, outputs: int = outputs, phases: int = phases, phase: int = phase) -> Tensor:
                    return w.reshape(outputs, phases, -1)[:, phase]

                yield layer.weight, select


class Muon(torch.optim.Muon):
    """PyTorch's Muon (orthogonalised momentum, Jordan et al. 2024), which takes matrices only, on views of convolution weights.

    Build it after the module is on its device: the views share the weights' memory.
    """

    def __init__(self, module: nn.Module, lr: float, momentum: float = 0.95) -> None:
        self.sources = list(_matrices(module))
        views = [select(parameter.detach()) for parameter, select in self.sources]
        for view, (parameter, _) in zip(views, self.sources, strict=True):
            assert view.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
        super().__init__(views, lr=lr, weight_decay=0.0, momentum=momentum)

    def step(self, closure: Any = None) -> Any:
        """One step from the gradients of the parameters that the views look into."""
        for view, (parameter, select) in zip(self.param_groups[0]["params"], self.sources, strict=True):
            view.grad = None if parameter.grad is None else select(parameter.grad)
        return super().step(closure)


def adam(module: nn.Module, exclude: list[nn.Parameter], lr: float, density_lr: float) -> torch.optim.Adam:
    """Adam on all parameters but `exclude`; those of the density, whose scale is that of logarithms, have their own rate."""
    skip = {id(p) for p in exclude}
    density, rest = [], []
    for name, parameter in module.named_parameters():
        if id(parameter) not in skip:
            (density if "density." in name else rest).append(parameter)
    return torch.optim.Adam([{"params": rest, "lr": lr}, {"params": density, "lr": density_lr}], betas=(0.9, 0.99))
