"""The optimisers: Muon or SOAP on the convolutions' weights, Adam on everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Select = Callable[[Tensor], Tensor]
EVERY = 4
"""Steps between SOAP's looks at the gradients' second moments; its basis follows them at every third."""


def _phases(module: nn.Module) -> Iterator[tuple[nn.Conv2d, int]]:
    """Each convolution, and of how many phases its outputs are: s² where it feeds a `PixelShuffle` by s, otherwise one."""
    children = [m for m in module.modules() if not list(m.children())]
    for layer, after in zip(children, [*children[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            yield layer, after.upscale_factor**2 if isinstance(after, nn.PixelShuffle) else 1


def _matrices(module: nn.Module) -> Iterator[tuple[nn.Parameter, Select]]:
    """Each convolution's weight as matrices (outputs × inputs·k²), as (parameter, view of it) pairs.

    The phases of a sub-pixel convolution are convolutions side by side; each is its own matrix.
    """
    for layer, phases in _phases(module):
        outputs = layer.out_channels // phases
        # The last layer has three outputs a phase, too few to orthogonalise; there it is one matrix.
        phases, outputs = (phases, outputs) if outputs >= 16 else (1, layer.out_channels)
        for phase in range(phases):

            def select(w: Tensor, outputs: int = outputs, phases: int = phases, phase: int = phase) -> Tensor:
                return w.reshape(outputs, phases, -1)[:, phase]

            yield layer.weight, select


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Parameter, Select]]:
    """Each convolution's weight as outputs × phases × inputs × k², as (parameter, view of it) pairs."""
    for layer, phases in _phases(module):

        def select(w: Tensor, phases: int = phases) -> Tensor:
            return w.reshape(-1, phases, w.shape[1], w.shape[2] * w.shape[3])

        yield layer.weight, select


def _views(sources: list[tuple[nn.Parameter, Select]]) -> list[Tensor]:
    """The views themselves, which share the parameters' memory."""
    views = [select(parameter.detach()) for parameter, select in sources]
    for view, (parameter, _) in zip(views, sources, strict=True):
        assert view.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    return views


def _hand_over(views: list[Tensor], sources: list[tuple[nn.Parameter, Select]]) -> None:
    """Give each view its part of its parameter's gradient."""
    for view, (parameter, select) in zip(views, sources, strict=True):
        view.grad = None if parameter.grad is None else select(parameter.grad)


class Muon(torch.optim.Muon):
    """PyTorch's Muon (orthogonalised momentum, Jordan et al. 2024), which takes matrices only, on views of convolution weights.

    Build it after the module is on its device: the views share the weights' memory.
    """

    def __init__(self, module: nn.Module, lr: float, momentum: float = 0.95) -> None:
        self.sources = list(_matrices(module))
        super().__init__(_views(self.sources), lr=lr, weight_decay=0.0, momentum=momentum)

    def step(self, closure: Any = None) -> Any:
        """One step from the gradients of the parameters that the views look into."""
        _hand_over(self.param_groups[0]["params"], self.sources)
        return super().step(closure)


def soap(module: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """SOAP (Adam in Shampoo's eigenbasis, Vyas et al. 2024) from pytorch_optimizer, and the parameters that it trains.

    It sees convolution weights as tensors with an axis each for outputs, phases, inputs and places, and so has small
    preconditioners. Build it after the module is on its device: the views share the weights' memory. Its state begins with
    the first gradient, whose step it leaves out.

    As the library has it, it takes as long as the network on a few crops. Here, what turns gradients into the eigenbasis and back is
    computed in bfloat16, as the network is, and the statistics are brought up to date at every fourth step: a third of the time.
    """
    # A heavy import, and few use it.
    from pytorch_optimizer import SOAP

    class Frugal(SOAP):
        def project(self, grad: Tensor, state: Any, *_: Any, project_type: str = "forward", **__: Any) -> Tensor:
            x = grad.bfloat16()
            for basis in state["Q"]:
                if len(basis) == 1:
                    continue
                # The first axis into the basis, or out of it, and to the end.
                q = basis.to(x.dtype)
                x = x.reshape(len(q), -1).t() @ (q if project_type == "forward" else q.t())
            return x.reshape(grad.shape).float()

        def update_pre_conditioner(self, grad: Tensor, state: Any, step: int, *args: Any, **more: Any) -> None:
            if state["Q"] is None or step % EVERY == 0:
                super().update_pre_conditioner(grad, state, step, *args, **more)

    sources = list(_tensors(module))
    optimiser = Frugal(_views(sources), lr=lr, weight_decay=0.0, precondition_frequency=3 * EVERY)
    optimiser.register_step_pre_hook(lambda *_: _hand_over(optimiser.param_groups[0]["params"], sources))
    return optimiser, [parameter for parameter, _ in sources]


def adam(module: nn.Module, exclude: list[nn.Parameter], lr: float, density_lr: float) -> torch.optim.Adam:
    """Adam on all parameters but `exclude`; those that are logarithms (density, gains, units) have a rate of their own."""
    skip = {id(p) for p in exclude}
    logarithms, rest = [], []
    for name, parameter in module.named_parameters():
        if id(parameter) not in skip:
            (logarithms if "density." in name or "log_" in name else rest).append(parameter)
    return torch.optim.Adam([{"params": rest, "lr": lr}, {"params": logarithms, "lr": density_lr}], betas=(0.9, 0.99))
