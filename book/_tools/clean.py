"""Keep notebooks in git free of noise.

    python book/_tools/clean.py book/*.ipynb             strip, in place
    python book/_tools/clean.py --refresh book/*.ipynb   execute at the smoke budget, then strip

Stripping takes away execution counts, machine-made metadata and all outputs but those of cells that
say ``# NBVAL_CHECK_OUTPUT``: nbval compares these, so they are kept (and with ``--refresh`` made
anew). They must be text, since pictures and warnings differ from machine to machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.corpus.words import generate_corpus_id

MARK = "# NBVAL_CHECK_OUTPUT"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = ("tags", "mystnb", "nbgrader")
NOTEBOOK_METADATA = ("mystnb",)


def is_marked(cell: NotebookNode) -> bool:
    """Tell whether the outputs of ``cell`` are kept and compared."""
    return cell.cell_type == "code" and MARK in cell.source


def strip(notebook: NotebookNode) -> None:
    """Take out of ``notebook`` all that changes from run to run or from machine to machine."""
    kept = {k: v for k, v in notebook.metadata.items() if k in NOTEBOOK_METADATA}
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # from 4.5 on a cell keeps its id
    notebook.metadata = NotebookNode(
        kept, kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python")
    )
    for cell in notebook.cells:
        cell.setdefault("id", generate_corpus_id())
        cell.metadata = NotebookNode(
            {k: v for k, v in cell.metadata.items() if k in CELL_METADATA and v}
        )
        if cell.cell_type == "code":
            cell.outputs = [_plain(o) for o in cell.outputs] if is_marked(cell) else []
            cell.execution_count = 1 if cell.outputs else None  # nbval wants a count beside outputs


def _plain(output: NotebookNode) -> NotebookNode:
    """Return ``output`` without its count and metadata, or raise if it is not plain text."""
    if output.output_type == "stream" and output.name == "stdout":
        return nbformat.v4.new_output("stream", name="stdout", text=output.text)
    if output.output_type in ("execute_result", "display_data") and set(output.data) == {
        "text/plain"
    }:
        return nbformat.v4.new_output(output.output_type, data=output.data)
    kind = output.get("name") or ", ".join(output.get("data", [])) or output.output_type
    raise ValueError(f"a cell marked {MARK} may print text only, this one gives {kind}")


def _join_streams(cell: NotebookNode) -> None:
    """Make one output of the pieces in which a kernel happens to send what a cell prints."""
    outputs: list[NotebookNode] = []
    for output in cell.outputs:
        last = outputs[-1] if outputs else None
        if last and last.output_type == output.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            outputs.append(output)
    cell.outputs = outputs


def execute(notebook: NotebookNode, folder: Path, timeout: float = 600) -> None:
    """Run ``notebook`` at the smoke budget, as nbval does, in ``folder``."""
    from nbclient import NotebookClient  # the pre-commit hook strips only, and does without it

    os.environ["MARL_BUDGET"] = "smoke"
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            _join_streams(cell)


def save(notebook: NotebookNode, path: Path) -> bool:
    """Write ``notebook`` to ``path`` if that changes the file; tell whether it did."""
    text = nbformat.writes(notebook) + "\n"
    if path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def main() -> None:
    """Clean the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description="Strip, and refresh, the outputs of notebooks.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--refresh", action="store_true", help="execute at the smoke budget first")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        notebook = nbformat.read(path, as_version=4)
        if arguments.refresh:
            execute(notebook, path.resolve().parent)
        try:
            strip(notebook)
        except ValueError as error:
            sys.exit(f"{path}: {error}")
        if save(notebook, path):
            print(f"cleaned {path}")


if __name__ == "__main__":
    main()
