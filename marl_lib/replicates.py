"""R seeds in one process: one network written for one seed, run for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.adam import adam

from marl_lib.nn.attention import unfused


class Replicates:
    """R independent copies of a network whose parameters lie in one buffer.

    The network is a plain module for one copy. ``torch.func.vmap`` lifts it, or a whole function
    that calls it (:func:`lift`), over the copies, so all of them cost a few products of stacked
    matrices. Since no copy sees another's parameters, the gradient of the summed loss is each
    copy's own gradient. The buffer ``flat`` (with its gradient in ``flat.grad``) makes the
    optimiser and a target network single operations.

    Parameters
    ----------
    make : callable
        Returns a freshly initialised module; called once a copy with torch's generator seeded. A
        module that stacks the networks of several agents says how many in ``copies``.
    seeds : sequence of int
        One for each of R replicates.
    device : torch device
    with_target : bool
        Keep a second set of parameters, which no optimiser moves.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        seeds: Sequence[int],
        device: str | torch.device = "cpu",
        with_target: bool = False,
    ):
        modules = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                modules.append(make())
        if next(modules[0].buffers(), None) is not None:
            raise ValueError("a module with buffers cannot be replicated")
        stacked = [torch.stack(p) for p in zip(*(m.parameters() for m in modules), strict=True)]
        self.flat = torch.cat([p.detach().flatten() for p in stacked]).to(device)  # (R × P,)
        self.target = self.flat.clone() if with_target else None
        self.module = modules[0].to("meta")  # the code; the numbers lie in the buffer
        self.copies = getattr(self.module, "copies", 1)  # networks in each copy of the module
        self._shapes = {n: (len(modules), *p.shape) for n, p in self.module.named_parameters()}
        self._bind()

    def _bind(self) -> None:
        """Make the views of the buffers, and the modules that look into them."""
        self.flat.grad = torch.zeros_like(self.flat)
        self.grads = self.views(self.flat.grad)
        self.params = self.views(self.flat)
        for name, parameter in self.params.items():
            parameter.requires_grad_()
            parameter.grad = self.grads[name]
        # The parameters in three roles: those that learn, the same held fixed, the target's.
        self.roles = {"learning": self.params, "fixed": self.views(self.flat)}
        if self.target is not None:
            self.roles["target"] = self.views(self.target)
        self._only: dict[str, nn.Module] = {}
        if len(self) == 1:
            self._only = {role: self._bound(params, 0) for role, params in self.roles.items()}
            for name, parameter in self._only["learning"].named_parameters():
                parameter.requires_grad_()
                parameter.grad = self.grads[name][0]
        else:
            unfused(self.module)

    def __len__(self) -> int:
        return next(iter(self._shapes.values()))[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Replicates:
        """Return a copy with buffers of its own; views copied one by one would come apart."""
        twin: Replicates = object.__new__(type(self))
        memo[id(self)] = twin
        twin.flat = self.flat.detach().clone()
        twin.target = None if self.target is None else self.target.clone()
        twin.module, twin.copies = deepcopy(self.module, memo), self.copies
        twin._shapes = dict(self._shapes)
        twin._bind()
        twin.train(self.module.training)
        return twin

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return a buffer like ``flat`` as named parameters (R, *shape) that share its memory."""
        parts = flat.detach().split([math.prod(shape) for shape in self._shapes.values()])
        return {n: part.view(s) for (n, s), part in zip(self._shapes.items(), parts, strict=True)}

    def _bound(self, params: Mapping[str, Tensor], index: int) -> nn.Module:
        """Return a module whose parameters are those of one copy, in the buffer."""
        module = deepcopy(self.module)
        for name, parameter in params.items():
            *path, last = name.split(".")
            bound = nn.Parameter(parameter.detach()[index], requires_grad=False)
            setattr(module.get_submodule(".".join(path)), last, bound)
        return module

    def train(self, mode: bool = True) -> None:
        """Set training mode, as ``nn.Module.train`` does: dropout acts in it alone."""
        for module in (self.module, *self._only.values()):
            module.train(mode)

    def network(self, index: int, role: str = "fixed") -> nn.Module:
        """Return copy ``index`` as a plain module, in evaluation mode, to look into."""
        return self._bound(self.roles[role], index).eval()

    def in_role(self, role: str, params: dict[str, Tensor] | None = None) -> Any:
        """Return the network of one copy, to be called: of given parameters, or of the only copy.

        Parameters
        ----------
        role : {"learning", "fixed", "target"}
        params : dict of name to tensor (*shape), or None
            Those of one copy, as ``torch.func.vmap`` hands them in.
        """
        if params is None:
            return self._only[role]
        return Bound(self.module, params)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run every copy on its own rows: inputs (R, batch, ...) -> outputs (R, batch, ...)."""
        return lift(lambda net, *rows: net.it(*rows), {"it": self}, *inputs, learning=("it",))

    def backward(self, loss: Tensor, max_grad_norm: float | None = None) -> Tensor:
        """Put the gradients of ``loss`` (R,) into ``flat.grad`` and clip each network by its norm.

        Returns
        -------
        Tensor (R,) : the gradient norms before clipping.
        """
        self.zero_grad()
        loss.sum().backward()
        return self.clip_gradient(max_grad_norm)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()

    def clip_gradient(self, max_grad_norm: float | None) -> Tensor:
        """Scale down the gradient of each network that is longer.

        Returns
        -------
        Tensor (R,) : the norms before, means over the networks of a copy.
        """
        assert self.flat.grad is not None
        networks = len(self) * self.copies
        if networks == 1:
            grads = [self.flat.grad.unsqueeze(0)]
        else:
            grads = [g.view(networks, -1) for g in self.grads.values()]  # (networks, size) each
        norms = [torch.linalg.vector_norm(g, dim=1) for g in grads]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm(dim=0)
        if max_grad_norm is not None:
            scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)[:, None]
            for g in grads:
                g.mul_(scale)
        return norm.view(len(self), -1).mean(1)

    def follow(self, share: float) -> None:
        """Move the target parameters by a share of the way to the present ones."""
        assert self.target is not None
        self.target.lerp_(self.flat, share)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the parameters, and those of the target."""
        kept = {"flat": self.flat, "target": self.target}
        return {name: value.detach().clone() for name, value in kept.items() if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


class Bound:
    """A network with the parameters of one copy, as it is called inside a lifted function."""

    def __init__(self, module: nn.Module, params: dict[str, Tensor]):
        self.module, self.params = module, params

    def __call__(self, *inputs: Any) -> Any:
        """Run the module on inputs without an axis of replicates."""
        return functional_call(self.module, self.params, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)  # sizes and the like


def lift(
    function: Callable[..., Any],
    nets: Mapping[str, Replicates],
    *data: Any,
    learning: Sequence[str] = (),
) -> Any:
    """Run a function that is written for one replicate for all of them at once.

    Parameters
    ----------
    function : callable
        ``function(net, *data)``: ``net.name(...)`` runs a network, ``net.target.name(...)`` that
        of the targets, where there are any. It may not branch on data nor write into what it gets.
    nets : mapping of name to Replicates
    data : nested dicts and tuples of tensors (R, ...)
        ``function`` gets them without their first axis.
    learning : names
        Networks that gradients reach; the others are held fixed.

    Returns
    -------
    What ``function`` returns, each tensor with a first axis of length R.
    """
    roles = [(n, "learning" if n in learning else "fixed") for n in nets]
    targets = [(n, "target") for n, net in nets.items() if net.target is not None]
    if len(next(iter(nets.values()))) == 1:  # one copy needs no lift: half the overhead
        named, after = (
            {n: nets[n].in_role(role) for n, role in chosen} for chosen in (roles, targets)
        )
        rows = _each(lambda x: x.squeeze(0), data)
        out = function(SimpleNamespace(**named, target=SimpleNamespace(**after)), *rows)
        return _each(lambda x: x.unsqueeze(0), out)

    def one(params: tuple, data: tuple) -> Any:
        named, after = (
            {n: nets[n].in_role(role, p) for (n, role), p in zip(chosen, given, strict=True)}
            for chosen, given in zip((roles, targets), params, strict=True)
        )
        return function(SimpleNamespace(**named, target=SimpleNamespace(**after)), *data)

    chance = any(net.module.training for net in nets.values())
    params = tuple([nets[n].roles[role] for n, role in chosen] for chosen in (roles, targets))
    return vmap(one, randomness="different" if chance else "error")(params, data)


def _each(change: Callable[[Tensor], Tensor], data: Any) -> Any:
    """Return nested dicts and tuples with every tensor changed, in half of torch's time."""
    if isinstance(data, Tensor):
        return change(data)
    if isinstance(data, dict):
        return {name: _each(change, x) for name, x in data.items()}
    return tuple([_each(change, x) for x in data])


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
        active : (R,) bool or None for all
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
