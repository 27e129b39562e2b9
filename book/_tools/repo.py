"""Write the public address of the repository to every place that shows it.

    python book/_tools/repo.py https://github.com/owner/name main
    python book/_tools/repo.py ""          not published: take it out of every place

The address stands in ``_config.yml``. From there it goes into the setup cell of every notebook,
into ``CITATION.cff``, and into Markdown pages between two comments that name what stands there::

    <!-- address: badge -->
    (written by this script; nothing while there is no address)
    <!-- /address -->

The blocks are ``badge`` (a Colab badge with its picture, for the README), ``colab`` (the same as a
line of text, for pages that load nothing from elsewhere), ``clone`` (how to get the repository),
``install`` (how to install the library alone) and ``cite`` (BibTeX, there without an address too).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import address as addresses
import setup_cell
import yaml
from address import ROOT, Address

BLOCK = re.compile(r"(<!-- address: (\w+) -->\n).*?(<!-- /address -->)", re.DOTALL)
COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def badge(address: Address, root: Path) -> str:
    """Return a badge that opens the first chapter in Colab."""
    link = address.colab(_first_chapter(root))
    return f"[![Open in Colab]({COLAB_BADGE})]({link})\n" if link else ""


def colab(address: Address, root: Path) -> str:
    """Return a sentence that leads to the first chapter in Colab."""
    link = address.colab(_first_chapter(root))
    return f"[Open the first chapter in Colab]({link})\n" if link else ""


def clone(address: Address, root: Path) -> str:
    """Return the commands that get the repository."""
    if not address.url:
        return ""
    branch = "" if address.branch == "main" else f"--branch {address.branch} "
    name = address.url.rsplit("/", 1)[-1]
    return f"```bash\ngit clone {branch}{address.url}\ncd {name}\n```\n"


def install(address: Address, root: Path) -> str:
    """Return the command that installs the library alone."""
    return f'```bash\npip install "{address.pip}"\n```\n' if address.url else ""


def cite(address: Address, root: Path) -> str:
    """Return the BibTeX entry of the book, from ``CITATION.cff``."""
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    authors = " and ".join(f"{{{author['name']}}}" for author in citation["authors"])
    fields = {
        "title": f"{{{citation['title']}}}",
        "author": authors,
        "year": str(citation["date-released"])[:4],
        "version": citation["version"],
        "url": address.url,
    }
    lines = [f"  {key:<7} = {{{value}}}," for key, value in fields.items() if value]
    return "\n".join(["```bibtex", "@software{marl_lib,", *lines, "}", "```", ""])


BLOCKS: dict[str, Callable[[Address, Path], str]] = {
    f.__name__: f for f in (badge, colab, clone, install, cite)
}


def _first_chapter(root: Path) -> str:
    chapters = sorted((root / "book").glob("*.ipynb"))
    if not chapters:
        raise FileNotFoundError(f"no notebook in {root / 'book'}")
    return chapters[0].relative_to(root).as_posix()


def fill_blocks(text: str, address: Address, root: Path) -> str:
    """Return the Markdown ``text`` with what stands between its address comments renewed."""

    def renew(found: re.Match[str]) -> str:
        if found[2] not in BLOCKS:
            raise ValueError(f"address block {found[2]!r} is not known ({', '.join(BLOCKS)})")
        return found[1] + BLOCKS[found[2]](address, root) + found[3]

    return BLOCK.sub(renew, text)


def citation_with(text: str, address: Address) -> str:
    """Return the text of ``CITATION.cff`` with the address of the code set, or taken out."""
    text = re.sub(r"(?m)^repository-code:.*\n", "", text)
    return text + (f'repository-code: "{address.url}"\n' if address.url else "")


def apply(address: Address, root: Path = ROOT) -> None:
    """Write ``address`` to every place below ``root`` that shows it."""
    _rewrite(root / "_config.yml", lambda text: addresses.config_with(text, address))
    _rewrite(root / "CITATION.cff", lambda text: citation_with(text, address))
    for page in (root / "README.md", *sorted((root / "book").glob("**/*.md"))):
        _rewrite(page, lambda text: fill_blocks(text, address, root))
    source = setup_cell.render(address, setup_cell.core_packages(root))
    for notebook in sorted((root / "book").glob("*.ipynb")):
        setup_cell.write(notebook, source)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text(encoding="utf-8")
    if (new := change(text)) != text:
        path.write_text(new, encoding="utf-8")
        print(f"changed {path}")


def main() -> None:
    """Write the address named on the command line, or say what is wrong with it."""
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: repo.py URL [BRANCH]   (URL is empty to take the address out)")
    try:
        apply(addresses.parse(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else ""))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
