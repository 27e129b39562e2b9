"""Updates recorded once as CUDA graphs, and replayed.

An update of small networks keeps a GPU waiting for hundreds of launches, not for arithmetic. A CUDA
graph launches them all at once (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Data = dict[str, Tensor]


class Captures:
    """Functions of tensors, recorded at their first call.

    What is recorded may wait for nothing, and what it changes beside (gradients) must lie in the
    same place each time. Off CUDA it is run again instead, on the same copies of its inputs.

    Attributes
    ----------
    recording : bool
        Whether a function is being run for it right now.
    """

    def __init__(self) -> None:
        self.recorded: dict[Hashable, _Recording] = {}
        self.numbers: dict[str, Tensor] = {}
        self.recording = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Captures:
        """Return an empty one: a graph belongs to the tensors that it was recorded with."""
        return Captures()

    def run(self, name: Hashable, function: Callable[[Data], Data], data: Data) -> Data:
        """Run ``function(data)``, or what was recorded under the name for tensors of such shapes.

        Of later calls, only the data count: what else a function depends on stays as recorded.
        """
        key = (name, *((k, x.shape, x.dtype) for k, x in data.items()))
        self.recording = True
        try:
            if key not in self.recorded:
                self.recorded[key] = _Recording(function, data)
            return self.recorded[key](data)
        finally:
            self.recording = False

    def number(self, name: str, value: float, device: torch.device) -> Tensor:
        """Return a number that may change between replays, as a tensor that stays in its place."""
        if name not in self.numbers:
            self.numbers[name] = torch.zeros((), dtype=torch.float64, device=device)
        return self.numbers[name].fill_(value)


class _Recording:
    def __init__(self, function: Callable[[Data], Data], data: Data):
        self.inputs = {name: x.clone() for name, x in data.items()}
        self.outputs: Data = {}

        def run() -> None:
            self.outputs = function(self.inputs)

        if next(iter(data.values())).device.type != "cuda":
            self.replay: Callable[[], None] = run
            return
        aside = torch.cuda.Stream()  # what is set up at first use is set up before recording
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        self.replay = graph.replay

    def __call__(self, data: Data) -> Data:
        for name, x in data.items():
            self.inputs[name].copy_(x)
        self.replay()
        return {name: x.clone() for name, x in self.outputs.items()}
