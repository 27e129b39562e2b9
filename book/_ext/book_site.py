"""What this site needs of Sphinx beyond its extensions.

* Addresses: everything that needs the public address of the site is derived from ``html.baseurl``.
* Freshness: Jupyter's cache looks at a notebook's own cells only. Here a notebook is also executed
  again when the library, a recorded result or the budget has changed, so that no page shows what an
  older library computed.
* Recorded results are copied beside the page that lists them, so that its links lead to the files.
* Docstrings: those of the library are plain prose. Shapes in them are set as code, types in them
  are words and no links, and the classes of the library that a class extends are named.
* Marks: the comment that has nbval compare a cell's output stays in the notebook, not on the page.
* Small repairs: the root of the site leads to the landing page, and the bibliography does without
  ARIA roles that browsers no longer know.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment

SHAPE = re.compile(r"(?<![\w`])\([A-Z],[^()`\n]*\)(?!`)")  # (B, N, D), (G, *shape)
NBVAL_MARK = "# NBVAL_CHECK_OUTPUT\n"
ROOT_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="0; url={landing}">
<title>{title}</title>
</head>
<body><main><h1>{title}</h1><p><a href="{landing}">Open the book</a></p></main></body>
</html>
"""
INPUTS = ("marl_lib/**/*.py", "marl_lib/**/*.yaml", "book/results/**/*.json")


def set_addresses(app: Sphinx, config: Config) -> None:
    """Give the social previews and the page-not-found page the address of the site."""
    if config.html_baseurl:
        config.html_baseurl = config.html_baseurl.rstrip("/") + "/"
    config.notfound_urls_prefix = urlsplit(config.html_baseurl).path or "/"
    config.ogp_site_url = config.html_baseurl


def inputs_digest(root: Path) -> str:
    """Return a hash of everything besides a notebook's own cells that its outputs depend on."""
    digest = hashlib.sha256(os.environ.get("MARL_BUDGET", "").encode())
    for path in sorted(p for pattern in INPUTS for p in root.glob(pattern)):
        digest.update(str(path.relative_to(root)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_notebook(page: Path) -> bool:
    """Tell whether a page is executed: a notebook, or Markdown with code cells."""
    return page.suffix == ".ipynb" or "\n```{code-cell}" in page.read_text(encoding="utf-8")


def stale_notebooks(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Empty the execution cache if the inputs have changed, and read every notebook again."""
    cache = Path(app.config.nb_execution_cache_path or Path(app.outdir).parent / ".jupyter_cache")
    stamp = cache / "inputs.sha256"
    digest = inputs_digest(Path(app.srcdir))
    if stamp.exists() and stamp.read_text() == digest:
        return []
    get_cache(str(cache)).clear_cache()
    cache.mkdir(parents=True, exist_ok=True)
    stamp.write_text(digest)
    return [doc for doc in env.found_docs if is_notebook(Path(env.doc2path(doc)))]


def copy_results(app: Sphinx, exception: Exception | None) -> None:
    """Put the recorded results beside the page that lists them."""
    results = Path(app.srcdir) / "book" / "results"
    if exception is None and app.builder.format == "html" and results.is_dir():
        shutil.copytree(results, Path(app.outdir) / "book" / "results", dirs_exist_ok=True)


def write_root_page(app: Sphinx, exception: Exception | None) -> None:
    """Lead from the root of the site to its landing page."""
    if exception is None and app.builder.format == "html":
        landing = app.builder.get_target_uri(app.config.root_doc)
        page = ROOT_PAGE.format(landing=landing, title=escape(app.config.html_title))
        (Path(app.outdir) / "index.html").write_text(page, encoding="utf-8")


def drop_roles(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Take the deprecated roles off the entries of a bibliography."""
    for role in (' role="list" class="citation-list"', ' role="doc-biblioentry"'):
        kept = ' class="citation-list"' if "class" in role else ""
        context["body"] = context.get("body", "").replace(role, kept)


def drop_marks(app: Sphinx, doctree: nodes.document) -> None:
    """Take the mark for nbval off the cells as they are shown."""
    for block in doctree.findall(nodes.literal_block):
        if block.astext().startswith(NBVAL_MARK):
            shown = block.astext().removeprefix(NBVAL_MARK)
            block.rawsource, block[:] = shown, [nodes.Text(shown)]


def set_shapes_as_code(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Set every shape in a docstring as code."""
    lines[:] = [SHAPE.sub(r"``\g<0>``", line) for line in lines]


def name_bases(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Say which classes of the library a class extends, with the bases of a private one instead."""
    bases = list(obj.__bases__) if what == "class" else []
    while private := [base for base in bases if base.__name__.startswith("_")]:
        at = bases.index(private[0])
        bases[at : at + 1] = private[0].__bases__
    ours = [b for b in bases if b.__module__.startswith("marl_lib")]
    if ours:
        links = ", ".join(f":py:class:`~{b.__module__}.{b.__qualname__}`" for b in ours)
        lines.extend(["", f"Extends {links}.", ""])


def is_word(app: Sphinx, domain: Any, node: nodes.Element) -> bool | None:
    """Tell Sphinx not to miss a target for a type; a reference that someone wrote stays checked.

    Only a role sets ``refwarn``; the words of a type ("float array", "the team") come without it.
    """
    return True if node.get("refdomain") == "py" and "refwarn" not in node else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", set_addresses)
    app.connect("env-get-outdated", stale_notebooks)
    app.connect("build-finished", copy_results)
    app.connect("build-finished", write_root_page)
    app.connect("html-page-context", drop_roles)
    app.connect("doctree-read", drop_marks)
    app.connect("autodoc-process-docstring", set_shapes_as_code)
    app.connect("autodoc-process-docstring", name_bases)
    app.connect("warn-missing-reference", is_word)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
