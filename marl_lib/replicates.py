"""R seeds in one process: one network written for one seed, run for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adam import adam
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
        self.flat.grad = torch.zeros_like(self.flat)
        self.module = modules[0].to("meta")  # the code; the numbers lie in the buffer
        self._shapes = {n: (len(modules), *p.shape) for n, p in self.module.named_parameters()}
        self.params = self.views(self.flat)
        self.grads = self.views(self.flat.grad)
        for name, parameter in self.params.items():
            parameter.requires_grad_()
            parameter.grad = self.grads[name]
        self._only = self._bound(0) if len(self) == 1 else None

    def __len__(self) -> int:
        return next(iter(self._shapes.values()))[0]

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a buffer like ``flat`` as named parameters (G, *shape) that share its memory."""
        parts = flat.detach().split([math.prod(shape) for shape in self._shapes.values()])
        return {n: part.view(s) for (n, s), part in zip(self._shapes.items(), parts, strict=True)}

    def _bound(self, index: int) -> nn.Module:
        """Return a module whose parameters are those of one copy, in the buffer."""
        module = deepcopy(self.module)
        for name, parameter in self.params.items():
            *path, last = name.split(".")
            bound = nn.Parameter(parameter.detach()[index])
            bound.grad = self.grads[name][index]
            setattr(module.get_submodule(".".join(path)), last, bound)
        return module

    def train(self, mode: bool = True) -> None:
        """Set training mode, as ``nn.Module.train`` does: dropout acts in it alone."""
        self.module.train(mode)
        if self._only is not None:
            self._only.train(mode)

    def network(self, index: int) -> nn.Module:
        """Return copy ``index`` as a plain module, in evaluation mode, to look into."""
        return self._bound(index).requires_grad_(False).eval()

    def __call__(self, *inputs: Tensor, params: dict[str, Tensor] | None = None) -> Any:
        """Run every copy on its own rows: inputs (G, batch, ...) -> outputs (G, batch, ...)."""
        if self._only is None:
            params = self.params if params is None else params
            run = vmap(
                lambda p, *x: functional_call(self.module, p, x),
                randomness="different" if self.module.training else "error",
            )
            return run(params, *inputs)
        # One copy needs no lift: two to three times less overhead.
        rows = tuple(x.squeeze(0) for x in inputs)
        if params is None:
            out = self._only(*rows)
        else:
            one = {name: p.squeeze(0) for name, p in params.items()}
            out = functional_call(self.module, one, rows)
        return tree_map(lambda y: y.unsqueeze(0), out)

    def backward(self, loss: Tensor, max_grad_norm: float | None = None) -> Tensor:
        """Put the gradients of ``loss`` (G,) into ``flat.grad`` and clip each copy by its own norm.

        Returns
        -------
        Tensor (G,) : the gradient norms before clipping.
        """
        self.zero_grad()
        loss.sum().backward()
        return self.clip_gradient(max_grad_norm)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()

    def clip_gradient(self, max_grad_norm: float | None) -> Tensor:
        """Scale down the gradient of each copy that is longer; return the norms before, (G,)."""
        assert self.flat.grad is not None
        if len(self) == 1:
            grads = [self.flat.grad.unsqueeze(0)]
        else:
            grads = [g.view(len(self), -1) for g in self.grads.values()]  # (G, size) each
        norm = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in grads]).norm(dim=0)
        if max_grad_norm is not None:
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)[:, None]
            for g in grads:
                g.mul_(scale)
        return norm


class Adam:
    """Adam (Kingma, Ba 2015, algorithm 1) on the buffer of :class:`Replicates`.

    The step is torch's own kernel. Its class ``torch.optim.Adam`` makes the same one, but loads
    torch's compiler first: a second of start-up, for runs that may take no longer than that.

    Parameters
    ----------
    nets : Replicates
    learning_rate : float
    eps : float
        Added to the root of the second moment.
    """

    def __init__(self, nets: Replicates, learning_rate: float, eps: float = 1e-8):
        self.nets, self.learning_rate, self.eps = nets, learning_rate, eps
        self.first, self.second = torch.zeros_like(nets.flat), torch.zeros_like(nets.flat)
        self.count = torch.zeros((), device=nets.flat.device)

    @torch.no_grad()
    def step(self, active: Tensor | None = None) -> None:
        """Make a step from the gradients in the buffer.

        Parameters
        ----------
        active : (G,) bool or None for all
            The copies that move; the others keep parameters and moments, only the count of steps is
            common.
        """
        kept = [self.nets.flat, self.first, self.second]
        still = active is not None and not active.all()
        before = [x.clone() for x in kept] if still else []
        flat, first, second = kept
        assert flat.grad is not None
        adam(
            [flat],
            [flat.grad],
            [first],
            [second],
            [],
            [self.count],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.learning_rate,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        if active is None or not before:
            return
        for x, old in zip(kept, before, strict=True):
            views = self.nets.views(x).values(), self.nets.views(old).values()
            for new_view, old_view in zip(*views, strict=True):
                new_view[~active] = old_view[~active]

    def state_dict(self) -> dict[str, Tensor]:
        """Return moments and count of steps."""
        return {name: getattr(self, name).clone() for name in ("first", "second", "count")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for name, value in state.items():
            getattr(self, name).copy_(value)
