"""R seeds in one process: one network written for one seed, run for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map


class Replicates:
    """G independent copies of a network whose parameters lie in one buffer.

    The network is a plain module for one copy. ``torch.func.vmap`` lifts it over the copies, so all
    of them cost a few products of stacked matrices. Since no copy sees another's parameters, the
    gradient of the summed loss is each copy's own gradient. The buffer ``flat`` (with its gradient
    in ``flat.grad``) makes the optimiser and a target network single operations.

    Parameters
    ----------
    make : callable
        Returns a freshly initialised module; called once a copy with torch's generator seeded.
    seeds : sequence of int
        One for each of R replicates.
    copies : int
        Networks of each replicate, for a team that does not share parameters: G = R × copies.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seeds: Sequence[int],
        copies: int = 1,
        device: str | torch.device = "cpu",
    ):
        modules = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                modules += [make() for _ in range(copies)]
        if next(modules[0].buffers(), None) is not None:
            raise ValueError("a module with buffers cannot be replicated")
        stacked = [torch.stack(p) for p in zip(*(m.parameters() for m in modules), strict=True)]
        self.flat = torch.cat([p.detach().flatten() for p in stacked]).to(device)  # (G × P,)
        self.module = modules[0].to("meta")  # the code; the numbers lie in the buffer
        self._shapes = {n: (len(modules), *p.shape) for n, p in self.module.named_parameters()}
        self.flat.grad = torch.zeros_like(self.flat)
        self.params = self.views(self.flat)
        self.grads = self.views(self.flat.grad)
        for name, parameter in self.params.items():
            parameter.requires_grad_()
            parameter.grad = self.grads[name]

    def __len__(self) -> int:
        return next(iter(self._shapes.values()))[0]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a buffer like ``flat`` as named parameters (G, *shape) that share its memory."""
        parts = flat.detach().split([math.prod(shape) for shape in self._shapes.values()])
        return {n: part.view(s) for (n, s), part in zip(self._shapes.items(), parts, strict=True)}

    def __call__(self, *inputs: Tensor, params: dict[str, Tensor] | None = None) -> Any:
        """Run every copy on its own rows: inputs (G, batch, ...) -> outputs (G, batch, ...)."""
        params = self.params if params is None else params
        if len(self) == 1:  # one copy needs no lift: two to three times less overhead
            one = {name: p.squeeze(0) for name, p in params.items()}
            out = functional_call(self.module, one, tuple(x.squeeze(0) for x in inputs))
            return tree_map(lambda y: y.unsqueeze(0), out)
        return vmap(lambda p, *x: functional_call(self.module, p, x))(params, *inputs)

    def backward(self, loss: Tensor, max_grad_norm: float | None = None) -> Tensor:
        """Put the gradients of ``loss`` (G,) into ``flat.grad`` and clip each copy by its own norm.

        Returns
        -------
        Tensor (G,) : the gradient norms before clipping.
        """
        assert self.flat.grad is not None
        self.flat.grad.zero_()
        loss.sum().backward()
        grads = [g.view(len(self), -1) for g in self.grads.values()]  # (G, size) each
        norm = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in grads]).norm(dim=0)
        if max_grad_norm is not None:
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)[:, None]
            for g in grads:
                g.mul_(scale)
        return norm
