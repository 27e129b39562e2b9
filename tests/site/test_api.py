"""The reference pages name every module of the library."""

from __future__ import annotations

import re


def test_every_module_has_its_place_in_the_reference(root):
    files = [p.relative_to(root) for p in (root / "marl_lib").rglob("*.py")]
    modules = {".".join(p.with_suffix("").parts) for p in files if not p.name.startswith("_")}
    pages = "".join(p.read_text() for p in (root / "book" / "api").glob("*.md"))
    named = re.findall(r"automodule:: (\S+)", pages)
    assert sorted(set(named)) == sorted(named), "a module is named twice"
    assert modules - set(named) == set()
