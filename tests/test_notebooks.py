"""The form that every notebook of the book keeps: what is in git, and what a reader is promised."""

from __future__ import annotations

import ast
import os
import re
import statistics
from pathlib import Path

import address
import clean
import definitions
import nbformat
import pytest
import setup_cell
from definitions import code, parse

BOOK = Path(__file__).resolve().parents[1] / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[0].isdigit()]
LONGEST_CELL = 25
LONGEST_MEDIAN = 10
FEWEST_COMPARED = 3
PLOTTING = {"plt", "sns", "plotting"}
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~-])/(?:home|root|work|Users|tmp|mnt|content|workspace)/")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)


def is_setup(cell):
    return "setup" in cell.metadata.get("tags", [])


def lines(cell):
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def names_called_at_top(cell):
    """Yield (call, leading name, name) of the calls a cell makes itself, outside of functions."""
    queue = list(parse(cell).body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Call):
            parts = ast.unparse(node.func).split(".")
            yield node, parts[0], parts[-1]
        queue.extend(ast.iter_child_nodes(node))


def names_from(notebook, module):
    """Return the names that a notebook imports from ``marl_lib.<module>``."""
    found = set()
    for cell in code(notebook):
        for node in ast.walk(parse(cell)):
            if isinstance(node, ast.ImportFrom) and node.module == f"marl_lib.{module}":
                found |= {alias.asname or alias.name for alias in node.names}
    return found


def draws(cell, plotting_names):
    """Tell whether a figure is made by what the cell itself calls."""
    return any(
        head in PLOTTING | plotting_names or name in {"subplots", "imshow"}
        for _, head, name in names_called_at_top(cell)
        if name not in {"use_style", "get_cmap", "rc_context", "update"}
    )


def has_stub(cell):
    """Tell whether the cell leaves a function to the reader: one that only returns ``...``."""
    for node in ast.walk(parse(cell)):
        if isinstance(node, ast.FunctionDef):
            value = getattr(node.body[-1], "value", None)
            if isinstance(value, ast.Constant) and value.value is Ellipsis:
                return True
    return False


def calls_check(cell):
    return any(head == "check" for _, head, _ in names_called_at_top(cell))


def test_there_are_chapters():
    assert CHAPTERS, f"no chapter (a notebook whose name begins with its number) in {BOOK}"


@every_notebook
def test_setup_cell_is_the_generated_one_and_comes_first(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code(notebook)
    source = setup_cell.render(address.read(), setup_cell.core_packages())
    assert cells[0].source == source, "run `make clean-notebooks`"
    assert cells[0].metadata["tags"] == setup_cell.TAGS
    assert sum(map(is_setup, cells)) == 1


@every_notebook
def test_is_stored_clean(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    notebook = nbformat.read(copy, as_version=4)
    clean.strip(notebook)
    assert not clean.save(notebook, copy), "run `make clean-notebooks`"


@every_notebook
def test_is_valid_and_runs_on_the_python3_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@every_notebook
def test_outputs_are_kept_where_they_are_compared_and_nowhere_else(path):
    # nbval passes a marked cell whose output was stripped, so it must be seen that there is one.
    for cell in code(nbformat.read(path, as_version=4)):
        assert bool(cell.outputs) == clean.is_marked(cell), cell.source
        for output in cell.outputs:
            assert output.output_type == "stream" or set(output.data) == {"text/plain"}
        assert (cell.execution_count is None) == (not cell.outputs)


@every_notebook
def test_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not ABSOLUTE_PATH.search(text), ABSOLUTE_PATH.search(text)
    assert os.path.expanduser("~") + "/" not in text
    assert not re.search(r"\b[A-Z]:\\+(?:Users|Windows|Program)", text)


@every_notebook
def test_code_cells_fit_on_a_screen(path):
    long = {
        cell.source.splitlines()[0]: lines(cell)
        for cell in code(nbformat.read(path, as_version=4))
        if lines(cell) > LONGEST_CELL
    }
    assert not long


@every_notebook
def test_every_figure_has_alt_text(path):
    notebook = nbformat.read(path, as_version=4)
    plotting_names = names_from(notebook, "plotting")
    for cell in code(notebook):
        if draws(cell, plotting_names):
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
            assert len(alt) >= 20, f"no mystnb.image.alt that says what is seen:\n{cell.source}"


@every_notebook
def test_every_animation_has_alt_text(path):
    notebook = nbformat.read(path, as_version=4)
    players = names_from(notebook, "player")
    for cell in code(notebook):
        for call, head, _ in names_called_at_top(cell):
            if head in players | {"player"}:
                assert any(k.arg == "alt" for k in call.keywords), ast.unparse(call)


@every_chapter
def test_median_code_cell_is_short(path):
    cells = [c for c in code(nbformat.read(path, as_version=4)) if not is_setup(c)]
    assert statistics.median(map(lines, cells)) <= LONGEST_MEDIAN


@every_chapter
def test_some_cells_are_compared(path):
    cells = code(nbformat.read(path, as_version=4))
    assert sum(map(clean.is_marked, cells)) >= FEWEST_COMPARED


@every_chapter
def test_begins_with_a_title_and_at_a_glance(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    before_code = "\n".join(
        c.source for c in notebook.cells[: notebook.cells.index(code(notebook)[0])]
    )
    assert re.search(r"at a glance", before_code, re.IGNORECASE)


@every_chapter
def test_has_exercises_and_every_stub_is_checked(path):
    notebook = nbformat.read(path, as_version=4)
    assert any(kind == "exercise" for kind, _ in definitions.gated(notebook))
    stubs = [c for c in code(notebook) if has_stub(c)]
    assert stubs
    for cell in stubs:
        assert calls_check(cell), f"the reader of this stub gets no feedback:\n{cell.source}"


def new_notebook(*cells):
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    notebook.metadata = {"colab": {"provenance": []}, "language_info": {"version": "3.11.7"}}
    return notebook


def new_cell(source, *outputs, **metadata):
    return nbformat.v4.new_code_cell(
        source, outputs=list(outputs), execution_count=7, metadata=metadata
    )


def printed(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_clean_keeps_compared_outputs_and_chosen_metadata_alone():
    alt = {"image": {"alt": "two lines"}}
    notebook = new_notebook(
        new_cell("print(1)", printed("1\n"), tags=["x"], mystnb=alt, collapsed=True),
        new_cell(f"{clean.MARK}\nprint(2)", printed("2\n")),
    )
    clean.strip(notebook)
    plain, compared = notebook.cells
    assert plain.outputs == [] and plain.metadata == {"tags": ["x"], "mystnb": alt}
    assert compared.outputs[0].text == "2\n"
    assert (plain.execution_count, compared.execution_count) == (None, 1)
    assert notebook.metadata == {
        "kernelspec": clean.KERNEL,
        "language_info": {"name": "python"},
    }


@pytest.mark.parametrize(
    "output",
    [
        printed("a warning", "stderr"),
        nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "Figure"}),
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]),
    ],
    ids=lambda o: o.output_type,
)
def test_clean_refuses_compared_outputs_that_are_not_text(output):
    with pytest.raises(ValueError, match="may print text only"):
        clean.strip(new_notebook(new_cell(f"{clean.MARK}\nf()", output)))


def test_refresh_stores_what_the_smoke_budget_gives(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MARL_BUDGET", "book")
    path = tmp_path / "one.ipynb"
    source = f"{clean.MARK}\nimport os\nprint(os.environ['MARL_BUDGET'])\nprint('again')\n6 * 7"
    nbformat.write(new_notebook(new_cell(source, printed("old\n")), new_cell("print(0)")), path)
    monkeypatch.setattr("sys.argv", ["clean.py", "--refresh", str(path)])
    clean.main()
    compared, plain = nbformat.read(path, as_version=4).cells
    assert compared.outputs[0].text == "smoke\nagain\n"
    assert compared.outputs[1].data == {"text/plain": "42"}
    assert plain.outputs == []
    once = path.read_bytes()
    clean.main()
    assert path.read_bytes() == once
