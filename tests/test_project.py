"""The parts of the repository agree: packages, commands, versions, addresses, import directions."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib.metadata
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import address
import pins
import pytest
import repo
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CI_EXTRAS = ("book", "test", "dev")
MADE_FOLDERS = {"_build", "__pycache__", "runs"}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return what the project asks for, the extras that an extra names included."""
    found = {r.name: r for r in map(Requirement, PROJECT["dependencies"])}
    for extra in extras:
        for r in map(Requirement, EXTRAS[extra]):
            found |= requirements(*r.extras) if r.name == PROJECT["name"] else {r.name: r}
    return found


def constraints() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text()
    return dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", text))


def files_of_the_tree() -> list[Path]:
    """Return every file that belongs to the project, with git's word for it where there is one."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        return [f for n in names.split("\0") if n and (f := ROOT / n).is_file()]
    except (OSError, subprocess.CalledProcessError):
        folders = [
            d
            for d in ROOT.iterdir()
            if d.is_dir() and (d.name == ".ci" or d.name[0] != ".") and d.name not in MADE_FOLDERS
        ]
        files = [f for d in folders for f in d.rglob("*") if f.is_file()]
        files += [f for f in ROOT.iterdir() if f.is_file()]
        return [f for f in files if not MADE_FOLDERS & set(f.relative_to(ROOT).parts)]


# Packages ----------------------------------------------------------------------------------------


def test_environment_asks_for_what_pyproject_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, through_pip = environment["dependencies"]
    assert conda == ["python=3.12", "pip"]
    assert "3.12" in Requirement(f"python{PROJECT['requires-python']}").specifier
    first, *listed, last = through_pip["pip"]
    assert first == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", last)[1].split(",")
    assert sorted(map(str, map(Requirement, listed))) == sorted(
        str(r) for r in requirements(*extras).values()
    )


def test_constraints_pin_all_that_ci_installs_within_the_bounds():
    pinned = constraints()
    for name, requirement in requirements(*CI_EXTRAS).items():
        assert pinned[canonicalize_name(name)] in requirement.specifier
    assert set(pins.EXTRAS) == set(CI_EXTRAS)


def test_constraints_can_be_installed_on_the_oldest_python_that_is_promised():
    oldest = Requirement(f"python{PROJECT['requires-python']}").specifier
    (bound,) = [clause.version for clause in oldest if clause.operator == ">="]
    for name in pins.closure(PROJECT["name"], ("book", "test")):
        needs = importlib.metadata.distribution(name).metadata.get("Requires-Python")
        assert SpecifierSet(needs or "").contains(f"{bound}.0"), f"{name} needs Python {needs}"


@pytest.mark.skipif(sys.platform != "linux", reason="the pins are those of CI, which is Linux")
def test_constraints_pin_what_these_need_in_turn():
    # "dev" is not installed where the tests run, and adds pre-commit alone.
    assert set(pins.closure(PROJECT["name"], ("book", "test"))) <= set(constraints())


def test_make_and_ci_install_with_the_constraints_what_is_pinned():
    makefile = (ROOT / "Makefile").read_text()
    installed = re.search(r'pip install .*-c constraints\.txt -e "\.\[([\w,]+)\]"', makefile)
    assert set(installed[1].split(",")) <= set(CI_EXTRAS)


def test_pre_commit_uses_the_pinned_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    needed = [Requirement(d) for hook in hooks for d in hook["additional_dependencies"]]
    assert needed
    for requirement in needed:
        assert str(requirement.specifier) == "==" + constraints()[requirement.name]


@functools.cache
def module_owners() -> Mapping[str, list[str]]:
    """Return the distributions that each module comes from (this reads every package there is)."""
    return importlib.metadata.packages_distributions()


def imported_distributions(path: Path, everywhere: bool = True) -> set[str]:
    """Return the installed distributions that a file imports: at its top, or anywhere in it."""
    tree = ast.parse(path.read_text())
    modules = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module)
    return {
        canonicalize_name(owner)
        for module in modules
        for owner in module_owners().get(module.split(".")[0], [])
    }


# What a package that is asked for stands on (sphinx below jupyter-book) counts as asked for.


def test_the_library_imports_what_it_asks_for():
    core = {PROJECT["name"], *pins.closure(PROJECT["name"], ())}
    # inside a function it may import what an extra brings: IPython in a notebook, say
    more = set(map(canonicalize_name, requirements("atari", "demo", "cluster")))
    more |= set(pins.closure(PROJECT["name"], ("book",)))
    for path in (ROOT / "marl_lib").rglob("*.py"):
        at_top = imported_distributions(path, everywhere=False) - core
        assert not at_top, f"{path.relative_to(ROOT)} imports {at_top}"
        inside = imported_distributions(path) - core - more
        assert not inside, f"{path.relative_to(ROOT)} imports {inside}"


@pytest.mark.parametrize("folder", ["tests", "book"])
def test_tests_and_book_import_what_they_ask_for(folder):
    asked = {PROJECT["name"], *pins.closure(PROJECT["name"], ("book", "test"))}
    for path in (ROOT / folder).rglob("*.py"):
        missing = imported_distributions(path) - asked
        assert not missing, f"{path.relative_to(ROOT)} imports {missing}"


# Commands and words ------------------------------------------------------------------------------


def commands(text: str) -> list[str]:
    """Return the lines of the shell blocks of Markdown, or of a script, without their prompt."""
    blocks = re.findall(r"(?ms)^```(?:bash|console|sh|shell)\n(.*?)^```", text) or [text]
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0].split(" # ")[0].strip() for line in lines]


def test_readme_gives_the_test_command_that_ci_runs():
    readme = commands((ROOT / "README.md").read_text())
    assert {"make book", "make test"} <= set(readme)
    assert "make test" in commands((ROOT / ".ci" / "run").read_text())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "book/how-to-use.md"])
def test_every_make_target_that_is_named_exists(page):
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    text = (ROOT / page).read_text()
    in_blocks = "\n".join(commands(text)) if "```" in text else ""
    named = set(re.findall(r"(?m)^make ([a-z-]+)", in_blocks))
    named |= set(re.findall(r"`make ([a-z-]+)", text))
    assert named
    assert named <= targets


def test_make_help_lists_every_target_a_person_calls():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"(?m)^\.PHONY: (.+)$", makefile))
    told = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True)
    assert phony == {line.split()[0] for line in told.stdout.splitlines() if line[:2] == "  "}


def test_licences_are_named():
    assert PROJECT["license"] == "MIT"
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    text = (ROOT / "LICENSE-text").read_text()
    assert "Creative Commons Attribution 4.0 International License" in text
    assert "https://creativecommons.org/licenses/by/4.0/" in text
    for name in PROJECT["license-files"]:
        assert (ROOT / name).is_file()
    readme = (ROOT / "README.md").read_text()
    assert "MIT" in readme and "CC BY 4.0" in readme


def test_citation_agrees_with_the_project_and_the_book():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["date-released"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [a["name"] for a in citation["authors"]] == [a["name"] for a in PROJECT["authors"]]
    book = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert citation["title"] == book["title"]
    assert citation["authors"][0]["name"].lower() == book["author"].lower()


def test_installed_version_is_that_of_the_project():
    assert importlib.metadata.version(PROJECT["name"]) == PROJECT["version"]


def test_no_file_names_a_path_of_a_machine():
    path = re.compile(r"(?<![\w.:/~*-])/(?:home|root|work|Users|workspace)/\w")
    own = re.compile(re.escape(str(ROOT)) + r"\b") if len(ROOT.parts) > 2 else path
    found = []
    for file in files_of_the_tree():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{file.name}: {m[0]}" for p in (path, own) for m in p.finditer(text)]
    assert not found


# The public address ------------------------------------------------------------------------------

PUBLISHED = address.Address("https://github.com/someone/a-book", "main")


@pytest.fixture
def copy(tmp_path):
    """Return a copy of all that the address is written to."""
    for name in ("_config.yml", "CITATION.cff", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    kept = shutil.ignore_patterns("_static", "results", "_build", "__pycache__")
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=kept)
    extra = "<!-- address: {0} -->\n<!-- /address -->\n"
    (tmp_path / "book" / "blocks.md").write_text("".join(map(extra.format, repo.BLOCKS)))
    repo.apply(address.Address(), tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.suffix in {".yml", ".cff", ".md", ".ipynb"}]
    return {f.relative_to(folder).as_posix(): f.read_text() for f in files}


def test_the_tree_shows_the_address_of_the_config(copy):
    """What is committed is what `make repo` would write."""
    repo.apply(address.read(), copy)
    for name, text in contents(copy).items():
        if name != "book/blocks.md":
            assert text == (ROOT / name).read_text(), "run `make repo` with the address you have"


def test_the_address_goes_everywhere_and_away_again(copy):
    before = contents(copy)
    repo.apply(PUBLISHED, copy)
    published = contents(copy)
    repo.apply(PUBLISHED, copy)
    assert contents(copy) == published

    assert address.read(copy) == PUBLISHED
    assert yaml.safe_load(published["CITATION.cff"])["repository-code"] == PUBLISHED.url
    colab = "colab.research.google.com/github/someone/a-book/blob/main/book/"
    blocks = published["book/blocks.md"]
    assert colab in blocks
    assert f"git clone {PUBLISHED.url}\ncd a-book\n" in blocks
    assert f"url     = {{{PUBLISHED.url}}}" in blocks
    for name, text in published.items():
        if name.endswith(".ipynb"):
            assert f"git+{PUBLISHED.url}@main" in text

    repo.apply(address.Address(), copy)
    assert contents(copy) == before
    assert "someone" not in "".join(before.values())


def test_without_an_address_the_site_shows_no_button_that_leads_nowhere(copy):
    def buttons():
        config = yaml.safe_load((copy / "_config.yml").read_text())
        on_page = {k: v for k, v in config["html"].items() if re.fullmatch(r"use_\w+_button", k)}
        named = ("use_repository_button", "use_issues_button", "use_edit_page_button")
        return [*(on_page[n] for n in named), bool(config["launch_buttons"]["colab_url"])]

    assert buttons() == [False] * 4
    repo.apply(PUBLISHED, copy)
    assert buttons() == [True] * 4
    repo.apply(address.Address("https://example.org/someone/a-book"), copy)
    assert buttons() == [True, True, True, False], "Colab opens notebooks from GitHub only"
    assert "colab.research" not in (copy / "book" / "blocks.md").read_text()


def test_comments_of_the_config_survive(copy):
    text = (copy / "_config.yml").read_text()
    repo.apply(PUBLISHED, copy)
    assert re.findall("#.*", (copy / "_config.yml").read_text()) == re.findall("#.*", text)


@pytest.mark.parametrize(
    ("url", "branch", "message"),
    [
        ("github.com/someone/a-book", "main", "URL must be"),
        ('https://github.com/a"b', "main", "URL must be"),
        ("https://github.com/someone/a-book", "two words", "BRANCH must be"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(url, branch, message):
    with pytest.raises(ValueError, match=message):
        address.parse(url, branch)


def test_an_address_is_taken_as_typed_or_as_copied_from_a_browser():
    for typed in ("/", ".git", ".git/"):
        assert address.parse(PUBLISHED.url + typed.rstrip("/"), "") == PUBLISHED
    assert address.parse("", "").url == ""


# The library -------------------------------------------------------------------------------------

# A module may import from its own floor and those below, and never in a circle.
FLOORS = [
    {"seeding", "budget", "config", "spec", "state"},
    {"nn", "exploration", "replay", "envs", "evaluation", "plotting", "player", "glue"},
    {
        "planning",
        "replicates",
        "rollout",
        "interpret",
        "advantages",
        "checkpoint",
        "log",
        "capture",
    },
    {"learner"},
    {"off_policy", "on_policy"},
    {"algorithms"},
    {"agents", "training", "check"},
    {"runs", "records", "tuning", "tables"},
    {"plans", "units"},
    {"experiments"},
    {"report"},
    {"cli", "demo"},
]
FORBIDDEN = {
    "seeding": {"torch", "gymnasium", "pettingzoo"},
    "envs": {"torch", "marl_lib.nn", "marl_lib.replay", "marl_lib.algorithms"},
    "nn": {"gymnasium", "pettingzoo", "marl_lib.envs"},
    "evaluation": {"torch", "gymnasium", "pettingzoo"},
}
MODULES = sorted(
    p for p in (ROOT / "marl_lib").rglob("*.py") if p.parent.parent != ROOT or p.stem != "__init__"
)


def part(module: str) -> str:
    """Return the part of the library that a dotted name belongs to: ``marl_lib.<part>…``."""
    return module.split(".")[1]


def floor(name: str) -> int:
    for level, names in enumerate(FLOORS):
        if name in names:
            return level
    pytest.fail(f"marl_lib.{name} stands on no floor; give it one in FLOORS")


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, relative imports resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # `from marl_lib import envs` imports marl_lib.envs
            names = {f"{prefix}.{a.name}" for a in node.names} if prefix == "marl_lib" else {prefix}
            found |= names
    return found


def place(path: Path) -> tuple[str, ...]:
    """Return where below ``marl_lib`` a file stands."""
    return path.relative_to(ROOT / "marl_lib").with_suffix("").parts


@pytest.mark.parametrize("path", MODULES, ids=lambda p: ".".join(place(p)))
def test_imports_go_one_way(path):
    own = place(path)
    for name in imports(path):
        for forbidden in FORBIDDEN.get(own[0], ()):
            assert not (name + ".").startswith(forbidden + "."), f"{own[0]} may not know {name}"
        if name.startswith("marl_lib.") and part(name) != own[0]:
            assert floor(part(name)) <= floor(own[0]), f"{'.'.join(own)} imports {name}"
        if name.startswith("marl_lib.algorithms.") and own[0] == "algorithms":
            assert own[1] == "__init__", f"one algorithm imports another: {own[1]}, {name}"


def test_parts_of_the_library_import_in_no_circle():
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        own = place(path)[0]
        parts = {part(n) for n in imports(path) if n.startswith("marl_lib.")}
        graph.setdefault(own, set()).update(parts - {own})
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_algorithms_stay_short_enough_to_be_read():
    """They are what the library exhibits; what several share belongs on the floors below."""
    lines = {
        p.stem: len(p.read_text().splitlines()) for p in MODULES if place(p)[0] == "algorithms"
    }
    assert {name: n for name, n in lines.items() if n > 250} == {}
    bases = ("learner.py", "off_policy.py", "on_policy.py", "exploration/greedy.py")
    shared = sum(len((ROOT / "marl_lib" / b).read_text().splitlines()) for b in bases)
    assert sum(lines.values()) + shared <= 2200


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def test_worlds_load_no_torch():
    assert run_python("import sys, marl_lib.envs; print('torch' in sys.modules)") == "False\n"


def test_import_costs_little_beyond_torch():
    # Processor time, since the tests share their machine.
    code = (
        "import time, torch; start = time.process_time(); import marl_lib; "
        "print(time.process_time() - start)"
    )
    assert statistics.median(float(run_python(code)) for _ in range(3)) <= 0.3


def test_every_configuration_and_result_is_kept():
    tracked = set(files_of_the_tree())
    for folder, pattern in (("marl_lib/configs", "*.yaml"), ("book/results", "*.json")):
        for file in (ROOT / folder).rglob(pattern):
            assert file in tracked, f"git ignores {file.name}"
