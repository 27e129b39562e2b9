"""Write ``constraints.txt``: the exact version of all that CI and the site are built with.

    python book/_tools/pins.py

Takes the versions installed in the environment that runs it, and of these only what the extras
below pull in, directly or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "marl-lib"
EXTRAS = ("book", "test", "dev")
HEADER = """\
# What CI and the site are built with, written by `make constraints`.
# Use: pip install -c constraints.txt …
# On Linux, PyPI's torch comes with CUDA (gigabytes). For the CPU build, add to pip install
#   --extra-index-url https://download.pytorch.org/whl/cpu
"""


def closure(project: str, extras: Iterable[str]) -> dict[str, str]:
    """Return name and version of every distribution that ``project[extras]`` needs here."""
    seen: set[tuple[str, str]] = set()
    versions: dict[str, str] = {}
    queue = [(project, extra) for extra in ("", *extras)]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found = distribution(name)
        versions[name] = found.version.split("+")[0]  # torch 2.13.0+cpu and +cu126 are one version
        for text in found.requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                base = canonicalize_name(needed.name)
                queue += [(base, e) for e in ("", *needed.extras)]
    del versions[project]
    return versions


def main() -> None:
    """Write the file."""
    pins = sorted(closure(PROJECT, EXTRAS).items())
    text = HEADER + "".join(f"{name}=={version}\n" for name, version in pins)
    (ROOT / "constraints.txt").write_text(text)


if __name__ == "__main__":
    main()
