"""What a run keeps to go on from: checkpoints that are whole, hold no code, and fit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the file and the cause."""


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` so that a crash leaves the old file or the new one, never half of one.

    Raises
    ------
    CheckpointError
        If the disk is full or the place cannot be written; the old file is untouched.
    """
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (OSError, RuntimeError) as error:  # torch hides a full disk behind its own complaint
        part.unlink(missing_ok=True)
        hidden = error if isinstance(error, OSError) else error.__context__
        cause = getattr(hidden, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"cannot write the checkpoint {path}: {cause}") from error


@contextlib.contextmanager
def checkpoint(path: Path) -> Iterator[dict[str, Any]]:
    """Read a checkpoint, for the time in which it is taken over.

    It can hold tensors, numbers and text, but no code.

    Raises
    ------
    CheckpointError
        If there is none, if it is damaged, or if what is to take it over has other shapes.
    """
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"the checkpoint {path} is damaged or not a checkpoint") from error
    try:
        yield state
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another configuration or version"
        ) from error
