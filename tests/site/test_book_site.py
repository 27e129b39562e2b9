"""What the site adds to Sphinx."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
from docutils import nodes


@pytest.fixture
def book_site(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "book" / "_ext")
    return importlib.import_module("book_site")


def test_the_digest_follows_library_results_and_budget_alone(book_site, tmp_path, monkeypatch):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return book_site.inputs_digest(tmp_path)

    monkeypatch.delenv("MARL_BUDGET", raising=False)
    digests = [
        write("marl_lib/envs/base.py", "a = 1"),
        write("marl_lib/envs/base.py", "a = 2"),
        write("marl_lib/configs/dqn.yaml", "gamma: 0.9"),
        write("book/results/e/dqn-0.json", "{}"),
        write("book/results/e/dqn-1.json", "{}"),
    ]
    assert len(set(digests)) == len(digests)
    assert write("book/index.md", "# Title") == digests[-1]
    monkeypatch.setenv("MARL_BUDGET", "smoke")
    assert book_site.inputs_digest(tmp_path) not in digests


def test_a_change_of_the_inputs_empties_the_cache_and_renews_the_notebooks(book_site, tmp_path):
    pages = {"a": "a.ipynb", "b": "b.md", "c": "c.md"}
    (tmp_path / "marl_lib").mkdir()
    (tmp_path / "a.ipynb").write_text("{}")
    (tmp_path / "b.md").write_text("# Page\n\n```{code-cell} python\n1\n```\n")
    (tmp_path / "c.md").write_text("# Page\n\n```python\n1\n```\n")
    cache = tmp_path / "cache"
    config = SimpleNamespace(nb_execution_cache_path=str(cache))
    app = SimpleNamespace(config=config, srcdir=tmp_path, outdir=tmp_path / "html")
    env = SimpleNamespace(found_docs=set(pages), doc2path=lambda d: str(tmp_path / pages[d]))

    def stale():
        return sorted(book_site.stale_notebooks(app, env, set(), set(), set()))

    assert stale() == ["a", "b"]
    (cache / "executed").mkdir()
    assert stale() == []
    assert (cache / "executed").exists()
    (tmp_path / "marl_lib" / "new.py").touch()
    assert stale() == ["a", "b"]
    assert not (cache / "executed").exists()


@pytest.mark.parametrize(
    ("given", "base", "prefix"),
    [
        ("", "", "/"),
        ("https://name.github.io/book", "https://name.github.io/book/", "/book/"),
        ("https://example.org/", "https://example.org/", "/"),
    ],
)
def test_addresses_follow_the_base(book_site, given, base, prefix):
    config = SimpleNamespace(html_baseurl=given)
    book_site.set_addresses(None, config)
    assert config.html_baseurl == config.ogp_site_url == base
    assert config.notfound_urls_prefix == prefix


def test_shapes_in_docstrings_are_code(book_site):
    lines = ["obs : array (B, N, D)", "f(B, N) and ``(R,)`` stay; (G, *shape) not", "(see above)"]
    book_site.set_shapes_as_code(None, "class", "C", object, None, lines)
    assert lines == [
        "obs : array ``(B, N, D)``",
        "f(B, N) and ``(R,)`` stay; ``(G, *shape)`` not",
        "(see above)",
    ]


def test_public_bases_are_named_for_private_ones(book_site):
    from marl_lib.envs.base import BatchedVectorEnv

    class _Hidden(BatchedVectorEnv):
        pass

    class Shown(_Hidden):
        pass

    lines: list[str] = []
    book_site.name_bases(None, "class", "Shown", Shown, None, lines)
    assert lines[1] == "Extends :py:class:`~marl_lib.envs.base.BatchedVectorEnv`."
    untouched: list[str] = []
    book_site.name_bases(None, "class", "object", SimpleNamespace, None, untouched)
    assert untouched == []


def test_the_mark_for_nbval_is_not_shown(book_site):
    mark, code = "# NBVAL_CHECK_OUTPUT", "print(1)\n"
    blocks = [nodes.literal_block(text, text) for text in (f"{mark}\n{code}", f"{code}{mark}\n")]
    doctree = nodes.container("", *blocks)
    book_site.drop_marks(None, doctree)
    assert [block.astext() for block in blocks] == [code, f"{code}{mark}\n"]
    assert blocks[0].rawsource == code, "Sphinx highlights only what it finds unchanged"
