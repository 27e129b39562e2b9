"""Take the definitions out of a notebook without running it: the tests hold them to the library."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells of a notebook."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parse(cell: NotebookNode) -> ast.Module:
    """Return the syntax tree of a code cell, magics included."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def load(cells: Iterable[NotebookNode]) -> dict[str, Any]:
    """Return what code cells define, without doing what they do.

    Imports, functions, classes and constants (names in capitals) are executed, in order; the rest
    is left out.
    """
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        kept = [node for node in parse(cell).body if isinstance(node, KEPT) or _is_constant(node)]
        exec(compile(ast.Module(kept, []), f"<cell {cell.get('id')}>", "exec"), namespace)
    return namespace


def load_notebook(path: Path) -> dict[str, Any]:
    """Return what the notebook at ``path`` defines outside of its exercises and solutions."""
    notebook = nbformat.read(path, as_version=4)
    inside = [cell for part in gated(notebook).values() for cell in part]
    return load(cell for cell in code(notebook) if cell not in inside)


def gated(notebook: NotebookNode) -> dict[tuple[str, str], list[NotebookNode]]:
    """Return the code cells of each exercise and each solution, as ``(kind, label) -> cells``."""
    parts: dict[tuple[str, str], list[NotebookNode]] = {}
    inside: tuple[str, str] | None = None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if inside:
                parts[inside].append(cell)
            continue
        for line in cell.source.splitlines():
            for kind in ("exercise", "solution"):
                if f"{{{kind}-start}}" in line:
                    inside = (kind, line.split("}", 1)[1].strip())
                elif f"{{{kind}-end}}" in line:
                    inside = None
            if inside and inside[0] == "exercise" and line.startswith(":label:"):
                inside = ("exercise", line.split(":label:")[1].strip())
        if inside:
            parts.setdefault(inside, [])
    return parts


def _is_constant(node: ast.stmt) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return bool(names) and all(name.isupper() for name in names)
