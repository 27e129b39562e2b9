"""The pages as files: links, anchors, pictures, and nothing taken from elsewhere."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
LOADED_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}


@dataclass
class Page(HTMLParser):
    """What a page links to, loads and offers as anchors."""

    file: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    images: list[dict[str, str | None]] = field(default_factory=list)
    titles: int = 0
    for_print: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        self.for_print |= given.get("id") == "jb-print-docs-body"
        if tag == "h1":  # the theme has one more, which only a printer sees
            self.titles += not self.for_print
            self.for_print = False
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "img":
            self.images.append(given)
        if tag in LOADS and given.get(LOADS[tag]):
            self.loads.append(given[LOADS[tag]])
        if tag == "link" and LOADED_RELATIONS & set((given.get("rel") or "").split()):
            self.loads.append(given["href"])

    handle_startendtag = handle_starttag


@functools.cache
def parsed(file: Path) -> Page:
    return Page(file)


@pytest.fixture
def page(site, name):
    return parsed(site / name)


def is_here(url):
    """Tell whether a link stays on the site."""
    parts = urlsplit(url)
    return not parts.scheme and not parts.netloc


def target(site, file, url):
    """Return the file that a link of ``file`` leads to."""
    path = unquote(urlsplit(url).path)
    if not path:
        return file
    found = site / path.lstrip("/") if path.startswith("/") else file.parent / path
    return found / "index.html" if found.is_dir() else found


def test_internal_links_and_anchors_are_live(site, page):
    def is_live(url):
        file, anchor = target(site, page.file, url), unquote(urlsplit(url).fragment)
        if not anchor or file.suffix != ".html":
            return file.exists()
        return file.exists() and anchor in parsed(file.resolve()).anchors

    assert page.links
    assert [url for url in page.links if is_here(url) and not is_live(url)] == []


def test_what_a_page_loads_lies_on_the_site(site, page):
    missing = [
        url
        for url in page.loads
        if not url.startswith("data:")
        and not (is_here(url) and target(site, page.file, url).is_file())
    ]
    assert not missing


def test_every_picture_has_alt_text(page):
    assert not [i for i in page.images if not (i.get("alt") or "").strip()]


def test_pages_have_one_title(page):
    assert page.titles == 1


def test_every_page_of_the_contents_is_built(site, root):
    toc = yaml.safe_load((root / "_toc.yml").read_text())

    def files(node):
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            node = list(node.values())
        for child in node if isinstance(node, list) else ():
            yield from files(child)

    listed = list(files(toc))
    assert len(listed) > 5
    assert [f for f in listed if not (site / f"{f}.html").is_file()] == []
