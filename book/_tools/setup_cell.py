"""Write the setup cell, one and the same, into every notebook of the book.

    python book/_tools/setup_cell.py book/*.ipynb

The cell is the one tagged ``setup``. Its text follows from the address in ``_config.yml`` and the
dependencies in ``pyproject.toml``.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import clean
import nbformat
from address import ROOT, Address, read

TAGS = ["setup", "hide-input"]
STAY = ("numpy", "torch")  # Colab's own, built for its machine

WITH_ADDRESS = """\
# Setup: in Colab this cell installs the library of this book; anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    from importlib.metadata import version
    from importlib.util import find_spec
    from subprocess import run

    wanted = "{wanted}"
    missing = [p for p in wanted.split() if find_spec(p.replace("pyyaml", "yaml")) is None]
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    run([*pip, f"numpy=={{version('numpy')}}", *missing], check=True)  # numpy and torch stay
    run([*pip, "--no-deps", "{pip}"], check=True)
"""
WITHOUT_ADDRESS = """\
# Setup: in Colab this cell installs the library of this book; anywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    raise RuntimeError(
        "this copy of the book does not name its public address, so Colab cannot install the "
        "library; whoever published it has to run: make repo URL=<address of the repository>"
    )
"""


def core_packages(root: Path = ROOT) -> list[str]:
    """Return the names of the packages that the library needs, from ``pyproject.toml``."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return [re.match(r"[\w.-]+", r)[0].lower() for r in project["dependencies"]]


def render(address: Address, packages: list[str]) -> str:
    """Return the source of the setup cell."""
    if not address.url:
        return WITHOUT_ADDRESS.rstrip()
    wanted = " ".join(p for p in packages if p not in STAY)
    return WITH_ADDRESS.format(wanted=wanted, pip=address.pip).rstrip()


def write(path: Path, source: str) -> None:
    """Put ``source`` into the cell of the notebook at ``path`` that is tagged ``setup``."""
    notebook = nbformat.read(path, as_version=4)
    cells = [c for c in notebook.cells if "setup" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{path} has {len(cells)} cells tagged setup; a notebook has one")
    cells[0].source = source
    cells[0].metadata["tags"] = TAGS
    clean.save(notebook, path)


def main() -> None:
    """Write the cell into the notebooks named on the command line."""
    source = render(read(), core_packages())
    for name in sys.argv[1:]:
        write(Path(name), source)


if __name__ == "__main__":
    main()
