"""The setup cell, run as Colab would run it: in an environment that lacks the library.

The stand-in for Colab is a bare environment that sees the packages installed here, less a few that
Colab lacks; an index made of wheels of these few, so that nothing is fetched; a git repository made
of the working tree; and a module named ``google.colab``.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import types
import venv
import zipfile
from pathlib import Path

import pins
import pytest
import setup_cell
from address import Address

ROOT = Path(__file__).resolve().parents[1]
LACKING = ("pettingzoo", "tyro", "docstring-parser")
NEWER = ("numpy", "torch")

REPORT = """
import importlib.metadata, json, sys
from importlib.util import find_spec
names = sys.argv[1:]
print(json.dumps({n: find_spec(n).origin if find_spec(n) else None for n in names}))
"""
IN_COLAB = """
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
"""
USE_LIBRARY = """
from marl_lib.envs import MultiAgentGridWorld
world = MultiAgentGridWorld(grid_size=(4, 4), n_agents=2, n_targets=2, max_steps=5)
observations, _ = world.reset(seed=0)
print(len(observations))
"""


def show_installed_packages(folder: Path) -> None:
    """Link in ``folder`` what is installed here, less the library and what Colab lacks."""
    hidden = {"pip"}
    for name in (pins.PROJECT, *LACKING):
        files = importlib.metadata.distribution(name).files or []
        hidden |= {f.parts[0] for f in files}
    folder.mkdir()
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(installed).iterdir():
            if entry.name not in hidden and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Write a pure Python wheel."""
    record = "".join(f"{path},,\n" for path in files)
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{stem}.dist-info/RECORD", record)


def wheel_of_installed(folder: Path, name: str) -> None:
    """Write a wheel of a distribution that is installed here."""
    found = importlib.metadata.distribution(name)
    info = f"{name.replace('-', '_')}-{found.version}.dist-info"
    files = {}
    for file in found.files or []:
        top, *below = file.parts
        if top != ".." and "__pycache__" not in file.parts and file.name != "RECORD":
            top = info if top.endswith(".dist-info") else top
            files["/".join([top, *below])] = Path(file.locate()).read_bytes()
    write_wheel(folder, name, found.version, files)


def wheel_of_nothing(folder: Path, name: str, version: str) -> None:
    """Write a wheel with no content: what an upgrade of ``name`` would bring."""
    info = f"{name}-{version}.dist-info"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    write_wheel(
        folder,
        name,
        version,
        {f"{info}/METADATA": about.encode(), f"{info}/WHEEL": kind.encode()},
    )


def repository_of_the_tree(folder: Path) -> Address:
    """Commit the working tree's library to a git repository in ``folder``; return its address."""
    folder.mkdir()
    for name in ("marl_lib", "book/results"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-text"):
        shutil.copy(ROOT / name, folder)
    git = ["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "tree"]):
        subprocess.run([*git, *arguments], check=True)
    return Address(folder.as_uri(), "main")


class Colab:
    """A stand-in for Colab below ``folder``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.source = setup_cell.render(
            repository_of_the_tree(folder / "repository"), setup_cell.core_packages()
        )
        show_installed_packages(folder / "installed")
        index = folder / "index"
        index.mkdir()
        for name in {*LACKING, "hatchling", *pins.closure("hatchling", ())}:
            wheel_of_installed(index, name)
        for name in NEWER:
            wheel_of_nothing(index, name, "99.0")
        venv.create(folder / "venv", with_pip=True, symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        # A path file, not links in the environment itself: what pip sees there it cannot remove.
        [site] = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "colab.pth").write_text(str(folder / "installed"))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
        self.environment = kept | {
            "HOME": str(folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_FIND_LINKS": str(index),
            "PIP_NO_INDEX": "1",
        }

    def run(self, code: str, *arguments: str) -> str:
        """Run code in the environment and return what it prints."""
        done = subprocess.run(
            [self.python, "-c", code, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def places(self, *modules: str) -> dict[str, str | None]:
        """Return the file that each module is imported from, None if there is none."""
        return json.loads(self.run(REPORT, *modules))

    def own_distributions(self) -> set[str]:
        """Return the distributions in the environment itself."""
        [site] = (self.folder / "venv" / "lib").glob("python*/site-packages")
        return {p.name.split("-")[0] for p in site.glob("*.dist-info")}


@pytest.mark.skipif(shutil.which("git") is None, reason="pip needs git to install from an address")
def test_in_colab_it_installs_the_library_and_what_is_missing_and_nothing_else(tmp_path):
    colab = Colab(tmp_path)
    modules = ("marl_lib", "pettingzoo", "tyro", "numpy", "torch", "gymnasium")
    before = colab.places(*modules)
    assert [m for m in modules if before[m] is None] == ["marl_lib", "pettingzoo", "tyro"]

    colab.run(colab.source)
    assert colab.places(*modules) == before, "outside Colab the cell does nothing"

    colab.run(IN_COLAB + colab.source)
    after = colab.places(*modules)
    for name in ("numpy", "torch", "gymnasium"):
        assert after[name] == before[name]
    assert colab.own_distributions() == {
        "pip",
        "marl_lib",
        "pettingzoo",
        "tyro",
        "docstring_parser",
    } | ({"setuptools"} if sys.version_info < (3, 12) else set())
    assert colab.run(USE_LIBRARY) == "2\n"
    installed = Path(after["marl_lib"]).parent
    for here, there in (("marl_lib/configs", "configs"), ("book/results", "_results")):
        kept = sorted(p.relative_to(ROOT / here) for p in (ROOT / here).rglob("*.*"))
        assert kept == sorted(
            p.relative_to(installed / there) for p in (installed / there).rglob("*.*")
        )


def test_without_an_address_it_says_so_in_colab_and_is_silent_elsewhere(monkeypatch):
    source = setup_cell.render(Address(), setup_cell.core_packages())
    exec(source, {})
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    with pytest.raises(RuntimeError, match="make repo URL="):
        exec(source, {})


@pytest.mark.parametrize("address", [Address(), Address("https://github.com/a/b", "dev")])
def test_it_is_short(address):
    source = setup_cell.render(address, setup_cell.core_packages())
    assert len(source.splitlines()) <= 15
    assert max(map(len, source.splitlines())) <= 100
