"""Learners on another device than the CPU, and updates captured to be replayed.

Where there is CUDA, learners run on it and must come to what they come to on the CPU. Elsewhere the
CPU shows what it can: that what an update makes names its device, that it never waits for one, and
that a captured update depends on nothing but what it is given.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import ENCODERS, LEARNERS, ON_POLICY, Play, full, learner, same

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

every = pytest.mark.parametrize("name", LEARNERS)
encoders = pytest.mark.parametrize("encoder", ENCODERS)
replicates = pytest.mark.parametrize("seeds", [(0,), (0, 3)], ids=len)
devices = pytest.mark.parametrize("device", DEVICES)


class Waits(TorchDispatchMode):
    """Lists the operations whose result the processor must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@every
@encoders
@replicates
def test_what_an_update_makes_names_its_device(
    name: str, encoder: str, seeds: tuple[int, ...]
) -> None:
    """What does not lands on the default device, here one whose tensors mix with no others."""
    made = full(name, encoder, seeds)
    before = [net.flat.detach().clone() for net in made.nets.values()]
    with torch.device("meta"):
        made.learn(made.prepare()) if name in ON_POLICY else made.learn_once()
    for net, old in zip(made.nets.values(), before, strict=True):
        assert net.flat.device.type == "cpu" and not torch.equal(net.flat, old)


@every
@encoders
@replicates
def test_an_update_waits_for_nothing(name: str, encoder: str, seeds: tuple[int, ...]) -> None:
    """A rollout is prepared once: there it is asked how many steps ran out of time."""
    made = full(name, encoder, seeds)
    batch = made.prepare() if name in ON_POLICY else None
    with Waits() as waits:
        made.learn(batch) if name in ON_POLICY else made.learn_once()
    assert not waits.found


def test_a_limit_on_the_divergence_waits() -> None:
    """It must; so the test above can fail."""
    made = full("mappo", "mlp", (0, 3), target_kl=1e9)
    batch = made.prepare()
    with Waits() as waits:
        made.learn(batch)
    assert waits.found


@every
@encoders
@replicates
@devices
def test_captured_updates_are_the_same(
    name: str, encoder: str, seeds: tuple[int, ...], device: str
) -> None:
    """Over several updates, with a learning rate and a clip ratio that go down."""
    changes = {"anneal": True, "max_grad_norm": 0.1}
    one, other = (
        Play(learner(name, encoder, seeds, total_steps=100, device=device, capture=c, **changes))(
            13
        )
        for c in (False, True)
    )
    assert one.figures and other.learner.captures.recorded
    for a, b in zip(one.learner.nets.values(), other.learner.nets.values(), strict=True):
        torch.testing.assert_close(a.flat, b.flat, atol=1e-5, rtol=1e-4)
    for figure, value in one.figures.items():
        close = {"atol": 1e-4, "rtol": 1e-3}
        torch.testing.assert_close(*map(torch.tensor, (value, other.figures[figure])), **close)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
@encoders
@replicates
def test_cuda_learns_as_the_cpu_does(name: str, encoder: str, seeds: tuple[int, ...]) -> None:
    """From one rollout or replay, to what float32 allows; what it keeps loads on either."""
    here = full(name, encoder, seeds)
    state = here.state_dict()
    there = learner(name, encoder, seeds, device="cuda")
    there.load_state_dict(state)
    for made in (here, there):
        made.learn(made.prepare()) if name in ON_POLICY else made.learn_once()
    for a, b in zip(here.nets.values(), there.nets.values(), strict=True):
        assert b.flat.device.type == "cuda"
        torch.testing.assert_close(a.flat, b.flat.cpu(), atol=2e-4, rtol=1e-3)
    back = learner(name, encoder, seeds)
    back.load_state_dict(there.state_dict())
    assert all(same(net.flat, there.nets[n].flat.cpu()) for n, net in back.nets.items())
