"""The page of a report: Markdown, and the figures beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes


class Page:
    """The Markdown of a report and the figures beside it."""

    def __init__(self, folder: Path):
        self.folder, self.lines, self.figures = folder, list[str](), list[Path]()

    def add(self, *lines: str) -> None:
        """Add paragraphs, headings and the like, an empty line after each."""
        for line in lines:
            self.lines += [line, ""]

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)
    ) -> None:
        """Add a table; numbers, which are in all columns but those of ``text``, stand right."""
        ruler = ["---" if i in text else "---:" for i in range(len(header))]
        self.add("\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows)))

    def figure(self, name: str, axes: Axes | np.ndarray, alt: str) -> None:
        """Keep a figure as ``name``.png and show it."""
        figure: Any = (axes[0] if isinstance(axes, np.ndarray) else axes).figure
        path = self.folder / f"{name}.png"
        figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        self.figures.append(path)
        self.add(f"![{alt}]({path.name})")
