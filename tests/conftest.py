"""What every test stands on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Before torch is imported: the tests run in several processes, each of them on small networks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import definitions  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# Timing is no business of Hypothesis on a busy machine. In CI the same examples come every time, so
# that a submission is judged by itself and not by the draw.
settings.register_profile("marl", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("marl")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def book(request: pytest.FixtureRequest, root: Path) -> dict[str, Any]:
    """Return what a chapter's notebook defines; in ``test_chapter_02.py``, chapter 2's."""
    number = request.path.stem.removeprefix("test_chapter_")
    (path,) = (root / "book").glob(f"{number}-*.ipynb")
    return definitions.load_notebook(path)
