"""Many copies of a network at once equal each of them alone: values, gradients, clipping, start."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import clip_grad_norm_

from marl_lib.nn.team import stacked
from marl_lib.replicates import Adam, Replicates, lift


class Net(nn.Module):
    """Linear layers, a norm and a parameter of its own: parameters of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh())
        self.head = nn.Linear(5, 2, bias=False)
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.body(x))


class Three(nn.Module):
    """Three networks with stacked parameters, each for its own column of the input (n, 3, 3)."""

    copies = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = stacked([Net() for _ in range(3)])  # type: ignore[arg-type, list-item]

    def forward(self, x: Tensor) -> Tensor:
        params = dict(self.net.named_parameters())
        return vmap(lambda p, x: functional_call(self.net, p, x), (0, 1), 1)(params, x)


def alone(nets: Replicates) -> list[Net]:
    """Return each copy, and each network in it, as a module of its own with the same numbers."""
    modules = []
    for r in range(len(nets)):
        for i in range(nets.copies):
            module = Net()
            own = {n.removeprefix("net."): p[r].detach() for n, p in nets.params.items()}
            own = own if nets.copies == 1 else {n: p[i] for n, p in own.items()}
            module.load_state_dict({n: p.clone() for n, p in own.items()})
            modules.append(module)
    return modules


def losses(nets: Replicates, x: Tensor, scale: Tensor) -> Tensor:
    return scale * nets(x).square().mean((1, 2))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[4], [4, 0, 9]], ids=len)
def test_copies_equal_modules_of_their_own(seeds: list[int]) -> None:
    nets = Replicates(Net, seeds)
    modules, x = alone(nets), numbers(len(seeds), 7, 3)
    assert len(nets) == len(modules) == len(seeds) and nets.copies == 1
    torch.testing.assert_close(nets(x), torch.stack([m(row) for m, row in zip(modules, x)]))  # noqa: B905

    # Gradients far apart in size: a norm over all copies would clip the small ones too.
    scale = 10.0 ** torch.arange(len(nets))
    norms = nets.backward(losses(nets, x, scale), max_grad_norm=0.5)
    for g, module in enumerate(modules):
        (scale[g] * module(x[g]).square().mean()).backward()
        torch.testing.assert_close(norms[g], clip_grad_norm_(module.parameters(), 0.5))
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(nets.grads[name][g], parameter.grad, msg=name)
    assert nets.flat.grad is not None
    assert nets.flat.grad.numel() == sum(grad.numel() for grad in nets.grads.values())


@pytest.mark.parametrize("seeds", [[4], [4, 0]], ids=len)
def test_networks_within_a_copy_are_clipped_one_by_one(seeds: list[int]) -> None:
    nets = Replicates(Three, seeds)
    modules, x = alone(nets), numbers(len(seeds), 7, 3, 3)
    assert nets.copies == 3
    out = nets(x)  # (R, 7, 3, 2)
    rows = x.transpose(1, 2).flatten(0, 1)  # (R × 3, 7, 3)
    expected = torch.stack([m(row) for m, row in zip(modules, rows, strict=True)])
    torch.testing.assert_close(out.transpose(1, 2).flatten(0, 1), expected)
    scale = 10.0 ** torch.arange(3)
    norms = nets.backward((out.square().mean((1, 3)) * scale).sum(1), max_grad_norm=0.1)
    own = []
    for k, (module, row) in enumerate(zip(modules, rows, strict=True)):
        (scale[k % 3] * module(row).square().mean()).backward()
        own.append(clip_grad_norm_(module.parameters(), 0.1))
        for name, parameter in module.named_parameters():
            grad = nets.grads[f"net.{name}"][k // 3, k % 3]
            torch.testing.assert_close(grad, parameter.grad, msg=name)
    torch.testing.assert_close(norms, torch.stack(own).view(-1, 3).mean(1))


@pytest.mark.parametrize("seeds", [[0], [0, 1]], ids=len)
def test_without_a_limit_gradients_keep_their_length(seeds: list[int]) -> None:
    nets = Replicates(Net, seeds)
    n = len(seeds)
    norms = nets.backward(losses(nets, torch.ones(n, 4, 3), torch.full((n,), 1e4)))
    total = sum(g.square().reshape(n, -1).sum(1) for g in nets.grads.values())
    torch.testing.assert_close(norms, torch.as_tensor(total).sqrt())
    assert (norms > 10).all()


def test_a_second_backward_starts_from_zero() -> None:
    nets = Replicates(Net, [0, 1])
    x = torch.ones(2, 4, 3)
    assert nets.flat.grad is not None
    nets.backward(losses(nets, x, torch.ones(2)))
    once = nets.flat.grad.clone()
    nets.backward(losses(nets, x, torch.ones(2)))
    assert torch.equal(nets.flat.grad, once)
    assert once.abs().sum() > 0


@pytest.mark.parametrize("bad", [100.0, float("nan"), float("inf")])
def test_no_copy_touches_another(bad: float) -> None:
    x = numbers(3, 6, 3, seed=1)
    other = x.clone()
    other[1] = bad
    grads = []
    for data in (x, other):
        nets = Replicates(Net, [0, 1, 2])
        nets.backward(losses(nets, data, torch.ones(3)), max_grad_norm=1e-3)
        grads.append(copy.deepcopy(nets.grads))
    for name in grads[0]:
        for g in (0, 2):
            torch.testing.assert_close(grads[0][name][g], grads[1][name][g], msg=name)
    assert any(not torch.equal(grads[0][name][1], grads[1][name][1]) for name in grads[0])


def test_initialisation_is_that_of_the_seed() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one, three = Replicates(Net, [5, 2]), Replicates(Three, [5, 2])
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is left alone
    for r, seed in enumerate([5, 2]):
        torch.manual_seed(seed)
        for i in range(3):
            for name, parameter in Net().named_parameters():
                assert i > 0 or torch.equal(one.params[name][r], parameter), name
                assert torch.equal(three.params[f"net.{name}"][r, i], parameter), name


def test_a_module_with_buffers_is_refused() -> None:
    with pytest.raises(ValueError, match="buffers cannot be replicated"):
        Replicates(lambda: nn.BatchNorm1d(3), [0, 1])


@pytest.mark.parametrize("seeds", [[3], [3, 1]], ids=len)
def test_one_copy_can_be_looked_into(seeds: list[int]) -> None:
    """As a plain module that shows the present numbers, of the network or of its target."""
    nets, x = Replicates(Net, seeds, with_target=True), numbers(len(seeds), 4, 3)
    last = len(seeds) - 1
    plain, target = nets.network(last), nets.network(last, "target")
    torch.testing.assert_close(plain(x[last]), nets(x)[last].detach())
    nets.flat.detach().mul_(2.0)
    torch.testing.assert_close(plain(x[last]), nets(x)[last].detach())
    torch.testing.assert_close(target(x[last]), Replicates(Net, seeds)(x)[last].detach())
    assert not any(p.requires_grad for p in (*plain.parameters(), *target.parameters()))


@pytest.mark.parametrize("seeds", [[3], [3, 1]], ids=len)
def test_a_copy_of_all_goes_its_own_way(seeds: list[int]) -> None:
    nets, x = Replicates(Net, seeds, with_target=True), numbers(len(seeds), 4, 3)
    twin, before = copy.deepcopy(nets), nets(x).detach()
    twin.backward(losses(twin, x, torch.ones(len(seeds))))
    assert nets.flat.grad is not None and not nets.flat.grad.any()
    Adam(twin, 0.1).step()
    assert not torch.allclose(twin(x), before, atol=1e-3)
    torch.testing.assert_close(nets(x).detach(), before)
    torch.testing.assert_close(twin.network(0)(x[0]), twin(x)[0].detach())


# Functions of one replicate -----------------------------------------------------------------------


def both(seeds: list[int]) -> dict[str, Replicates]:
    nets = {n: Replicates(Net, seeds, with_target=True) for n in ("first", "second")}
    for k, net in enumerate(nets.values()):
        net.flat.detach().mul_(1.0 + k)
        assert net.target is not None
        net.target.mul_(0.5)
    return nets


@pytest.mark.parametrize("seeds", [[4], [4, 0, 9]], ids=len)
@pytest.mark.parametrize("learning", ["first", "second"])
def test_gradients_reach_what_learns_and_nothing_else(seeds: list[int], learning: str) -> None:
    """Through a function of several networks, their targets and nested data."""
    nets, x = both(seeds), numbers(len(seeds), 6, 3)

    def loss(net: Any, data: dict[str, Tensor], pair: tuple[Tensor, Tensor]) -> Any:
        out = net.first(data["x"]) * net.second(data["x"]) - net.target.first(data["x"])
        return (out.square().mean() * pair[1], {"mean": out.mean()})

    given = {"x": x}, (x, torch.arange(1.0, 1 + len(seeds)))
    found, figures = lift(loss, nets, *given, learning=(learning,))
    assert found.shape == figures["mean"].shape == (len(seeds),)
    found.sum().backward()
    other = "second" if learning == "first" else "first"
    assert nets[other].flat.grad is not None and not nets[other].flat.grad.any()
    for net in nets.values():
        assert net.target is not None and net.target.grad is None
    for r in range(len(seeds)):
        plain = {n: nets[n].network(r).requires_grad_(n == learning) for n in nets}
        goal = nets["first"].network(r, "target")(x[r])
        out = plain["first"](x[r]) * plain["second"](x[r]) - goal
        torch.testing.assert_close(figures["mean"][r], out.mean())
        exact = out.square().mean() * (r + 1)
        torch.testing.assert_close(found[r], exact)
        exact.backward()
        for name, p in plain[learning].named_parameters():
            torch.testing.assert_close(nets[learning].grads[name][r], p.grad, msg=name)


@pytest.mark.parametrize("seeds", [[4], [4, 0]], ids=len)
def test_without_anything_that_learns_there_are_no_gradients(seeds: list[int]) -> None:
    nets, x = both(seeds), numbers(len(seeds), 6, 3)
    assert not lift(lambda net, x: net.first(x), nets, x).requires_grad


@pytest.mark.parametrize("seeds", [[4], [4, 0]], ids=len)
def test_dropout_falls_differently_for_each_replicate_and_in_training_alone(
    seeds: list[int],
) -> None:
    nets = Replicates(lambda: nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)), seeds)
    x = torch.ones(len(seeds), 1, 3)
    nets.train()
    wet = nets(x) == 0
    assert wet.any() and not wet.all() and not torch.equal(wet, nets(x) == 0)
    assert len(seeds) == 1 or not torch.equal(wet[0], wet[1])
    nets.train(False)
    torch.testing.assert_close(nets(x), nets(x))
    assert (nets(x) != 0).all()


# The optimiser, and targets -----------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]], ids=len)
def test_one_optimiser_moves_every_copy_as_one_of_its_own_would(seeds: list[int]) -> None:
    nets = Replicates(Net, seeds)
    modules, optimiser = alone(nets), Adam(nets, 1e-2)
    own = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in modules]
    for k in range(5):
        x = numbers(len(seeds), 8, 3, seed=k)
        nets.backward(losses(nets, x, torch.ones(len(seeds))))
        optimiser.step()
        for module, step, row in zip(modules, own, x, strict=True):
            step.zero_grad()
            module(row).square().mean().backward()
            step.step()
    x = numbers(len(seeds), 8, 3)
    expected = torch.stack([m(row) for m, row in zip(modules, x, strict=True)])
    torch.testing.assert_close(nets(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_targets_follow_by_their_share_and_nothing_else_moves_them(share: float) -> None:
    nets = Replicates(Net, [0, 1], with_target=True)
    assert nets.target is not None
    start = nets.target.clone()
    nets.backward(losses(nets, torch.ones(2, 4, 3), torch.ones(2)))
    Adam(nets, 0.1).step()
    assert torch.equal(nets.target, start) and not torch.allclose(nets.flat, start)
    nets.follow(share)
    torch.testing.assert_close(nets.target, (1 - share) * start + share * nets.flat.detach())
    state = nets.state_dict()
    other = Replicates(Net, [7, 8], with_target=True)
    other.load_state_dict(state)
    x = numbers(2, 4, 3)
    assert torch.equal(nets(x), other(x))  # the buffer is the parameters
    nets.follow(0.5)
    assert other.target is not None and torch.equal(other.target, state["target"])


def test_adam_equals_torch_s() -> None:
    nets = Replicates(Net, [0, 1])
    theirs = nets.flat.detach().clone().requires_grad_()
    ours, reference = Adam(nets, 3e-3, eps=1e-5), torch.optim.Adam([theirs], lr=3e-3, eps=1e-5)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        assert nets.flat.grad is not None
        nets.flat.grad.copy_(torch.randn(len(theirs), generator=generator) * 10.0 ** (step % 3))
        theirs.grad = nets.flat.grad.clone()
        if step == 10:  # kept and taken up again
            state = ours.state_dict()
            ours = Adam(nets, 0.0, eps=1e-5)
            ours.load_state_dict(state)
            ours.learning_rate = reference.param_groups[0]["lr"] = 1e-3
        ours.step()
        reference.step()
        torch.testing.assert_close(nets.flat, theirs, rtol=0, atol=1e-6)


def test_adam_leaves_alone_what_is_not_active() -> None:
    nets = Replicates(Net, [0, 1, 2])
    optimiser = Adam(nets, 1e-2)
    assert nets.flat.grad is not None
    nets.flat.grad.fill_(1.0)
    optimiser.step()
    before = [nets.flat.detach().clone(), optimiser.first.clone(), optimiser.second.clone()]
    optimiser.step(torch.tensor([True, False, True]))
    for now, old in zip((nets.flat, optimiser.first, optimiser.second), before, strict=True):
        moved = nets.views(now), nets.views(old)
        for name in nets.params:
            new, was = moved[0][name], moved[1][name]
            assert torch.equal(new[1], was[1]), name
            assert (new[[0, 2]] != was[[0, 2]]).all(), name


def test_training_does_not_wait_for_a_compiler() -> None:
    """Loading it takes a second; ``torch.optim``'s classes do so on their first call."""
    code = """
import sys, torch
from marl_lib.replicates import Adam, Replicates
nets = Replicates(lambda: torch.nn.Linear(2, 1), [0, 1])
nets.backward(nets(torch.ones(2, 3, 2)).square().mean((1, 2)), 0.5)
Adam(nets, 1e-3).step()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
