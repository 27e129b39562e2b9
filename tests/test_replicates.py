"""Many copies of a network at once equal each of them alone: values, gradients, clipping, start."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from marl_lib.replicates import Adam, Replicates


class Net(nn.Module):
    """Linear layers, a norm and a parameter of its own: parameters of several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh())
        self.head = nn.Linear(5, 2, bias=False)
        self.scale = nn.Parameter(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.body(x))


def alone(nets: Replicates) -> list[Net]:
    """Return each copy as a module of its own with the same numbers."""
    modules = []
    for g in range(len(nets)):
        module = Net()
        module.load_state_dict({name: p[g].detach().clone() for name, p in nets.params.items()})
        modules.append(module)
    return modules


def losses(nets: Replicates, x: Tensor, scale: Tensor) -> Tensor:
    return scale * nets(x).square().mean((1, 2))


@pytest.mark.parametrize(("seeds", "copies"), [([4], 1), ([4, 0, 9], 1), ([4, 0], 3)])
def test_copies_equal_modules_of_their_own(seeds: list[int], copies: int) -> None:
    nets = Replicates(Net, seeds, copies)
    modules = alone(nets)
    assert len(nets) == len(modules) == len(seeds) * copies
    x = torch.randn(len(nets), 7, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(nets(x), torch.stack([m(row) for m, row in zip(modules, x)]))  # noqa: B905

    # Gradients far apart in size: a norm over all copies would clip the small ones too.
    scale = 10.0 ** torch.arange(len(nets))
    norms = nets.backward(losses(nets, x, scale), max_grad_norm=0.5)
    for g, module in enumerate(modules):
        (scale[g] * module(x[g]).square().mean()).backward()
        norm = clip_grad_norm_(module.parameters(), 0.5)
        torch.testing.assert_close(norms[g], norm)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(nets.grads[name][g], parameter.grad, msg=name)
    assert nets.flat.grad is not None
    assert nets.flat.grad.numel() == sum(grad.numel() for grad in nets.grads.values())


def test_without_a_limit_gradients_keep_their_length() -> None:
    nets = Replicates(Net, [0, 1])
    x = torch.ones(2, 4, 3)
    norms = nets.backward(losses(nets, x, torch.full((2,), 1e4)))
    total = sum(g.square().reshape(2, -1).sum(1) for g in nets.grads.values())
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
    """With one copy's data changed, the others' gradients are the same to the last bit."""
    x = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[1] = bad
    grads = []
    for data in (x, other):
        nets = Replicates(Net, [0, 1, 2])
        nets.backward(losses(nets, data, torch.ones(3)), max_grad_norm=1e-3)
        grads.append(copy.deepcopy(nets.grads))
    for name in grads[0]:
        for g in (0, 2):
            assert torch.equal(grads[0][name][g], grads[1][name][g]), name
    assert any(not torch.equal(grads[0][name][1], grads[1][name][1]) for name in grads[0])


@pytest.mark.parametrize("copies", [1, 3])
def test_initialisation_is_that_of_the_seed(copies: int) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    nets = Replicates(Net, [5, 2], copies)
    assert torch.equal(torch.get_rng_state(), before)  # torch's own generator is left alone
    for r, seed in enumerate([5, 2]):
        torch.manual_seed(seed)
        for i in range(copies):
            for name, parameter in Net().named_parameters():
                assert torch.equal(nets.params[name][r * copies + i], parameter), name


def test_the_buffer_is_the_parameters() -> None:
    """One optimiser over the buffer moves every copy as an optimiser of its own would."""
    nets = Replicates(Net, [0, 1, 2])
    modules = alone(nets)
    optimiser = Adam(nets, 1e-2)
    own = [torch.optim.Adam(m.parameters(), lr=1e-2) for m in modules]
    target = nets.flat.clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(3, 8, 3, generator=generator)
        nets.backward(losses(nets, x, torch.ones(3)))
        optimiser.step()
        for module, step, row in zip(modules, own, x, strict=True):
            step.zero_grad()
            module(row).square().mean().backward()
            step.step()
    x = torch.randn(3, 8, 3, generator=generator)
    torch.testing.assert_close(nets(x), torch.stack([m(row) for m, row in zip(modules, x)]))  # noqa: B905
    # Another buffer of the same layout, as a target network, is used in place of the parameters.
    first = Replicates(Net, [0, 1, 2])
    torch.testing.assert_close(nets(x, params=nets.views(target)), first(x))
    assert not torch.allclose(nets(x), first(x))


def test_a_module_with_buffers_is_refused() -> None:
    with pytest.raises(ValueError, match="buffers cannot be replicated"):
        Replicates(lambda: nn.BatchNorm1d(3), [0, 1])


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
        torch.testing.assert_close(nets.flat, theirs, rtol=0, atol=1e-7)


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
