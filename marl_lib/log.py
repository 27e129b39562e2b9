"""What a run logs: its curve, log.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


@dataclass
class Curve:
    """Evaluations over training: points in time by replicates.

    Attributes
    ----------
    steps : list of int, (points,)
    values : dict of name to list of (R,) lists
        ``episode_return`` and whatever else the world measures, means over the episodes.
    """

    steps: list[int] = field(default_factory=list)
    values: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, steps: int, figures: Mapping[str, np.ndarray]) -> None:
        """Append one point; figures are (R,)."""
        self.steps.append(steps)
        for name, value in figures.items():
            self.values.setdefault(name, []).append([float(v) for v in value])

    def array(self, name: str = "episode_return") -> np.ndarray:
        """Return one figure as an array (R, points)."""
        return np.array(self.values[name]).T


class RunLog:
    """The folder of one run: log.jsonl, TensorBoard events, checkpoint.pt."""

    def __init__(self, folder: Path):
        self.path, self.checkpoint = folder / "log.jsonl", folder / "checkpoint.pt"
        self.events = folder / "tensorboard" / "events.out.tfevents.run"
        self.events.parent.mkdir(parents=True, exist_ok=True)

    def write(self, steps: int, figures: Mapping[str, np.ndarray], seeds: list[int]) -> None:
        """Append one line: figures (R,) by name; TensorBoard gets one line a seed."""
        row = {"step": steps} | {k: [float(x) for x in v] for k, v in figures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        points = [
            Summary.Value(tag=f"{name}/seed_{seed}", simple_value=float(x))
            for name, value in figures.items()
            for seed, x in zip(seeds, value, strict=True)
        ]
        # TensorBoard's own writer works in a thread, where a full disk cannot be caught.
        with self.events.open("ab") as file:
            out = RecordWriter(file)
            if not file.tell():
                out.write(Event(file_version="brain.Event:2").SerializeToString())
            event = Event(step=steps, wall_time=time.time(), summary=Summary(value=points))
            out.write(event.SerializeToString())

    def sizes(self) -> list[int]:
        """Return the bytes written to the two logs so far."""
        return [p.stat().st_size if p.exists() else 0 for p in (self.path, self.events)]

    def cut(self, sizes: list[int]) -> None:
        """Drop what was logged after a checkpoint, before going on from it."""
        for path, size in zip((self.path, self.events), sizes, strict=True):
            if path.exists():
                os.truncate(path, min(size, path.stat().st_size))
