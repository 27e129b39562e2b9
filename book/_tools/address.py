"""The public address of the repository, which stands in ``_config.yml`` and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Address:
    """Where the repository can be had: ``url`` is empty while it has not been published."""

    url: str = ""
    branch: str = "main"

    def __post_init__(self) -> None:
        if self.url and not re.fullmatch(r"(https|file)://[^\s\"'{}]+", self.url):
            raise ValueError(f"URL must be an address such as https://…/owner/name: {self.url!r}")
        if not re.fullmatch(r"[\w./-]+", self.branch):
            raise ValueError(f"BRANCH must be the name of a branch: {self.branch!r}")

    @property
    def github(self) -> str:
        """``owner/name`` on GitHub, from where Colab can open notebooks; else empty."""
        found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", self.url)
        return found[1] if found else ""

    @property
    def pip(self) -> str:
        """What pip installs."""
        return f"git+{self.url}@{self.branch}"

    def colab(self, path: str) -> str:
        """Where Colab opens the notebook ``path``; empty if it cannot."""
        if not self.github:
            return ""
        return f"https://colab.research.google.com/github/{self.github}/blob/{self.branch}/{path}"


def parse(url: str, branch: str) -> Address:
    """Return the address as typed, less a trailing slash or ``.git``."""
    return Address(url.strip().rstrip("/").removesuffix(".git"), branch.strip() or "main")


def read(root: Path = ROOT) -> Address:
    """Return the address that ``_config.yml`` holds."""
    repository = yaml.safe_load((root / "_config.yml").read_text())["repository"]
    return parse(repository["url"] or "", repository["branch"] or "")


def config_with(text: str, address: Address) -> str:
    """Return the text of ``_config.yml`` with ``address`` and all that hangs on it set.

    Without an address the site shows none of the buttons that would lead there. Colab opens
    notebooks from GitHub only, so elsewhere its button stays off.
    """
    colab = "https://colab.research.google.com" if address.github else ""
    text = _set(text, "repository", "url", f'"{address.url}"')
    text = _set(text, "repository", "branch", address.branch)
    text = _set(text, "launch_buttons", "colab_url", f'"{colab}"')
    for button in ("use_repository_button", "use_issues_button", "use_edit_page_button"):
        text = _set(text, "html", button, "true" if address.url else "false")
    return text


def _set(text: str, section: str, key: str, value: str) -> str:
    """Set ``section.key`` in YAML text, line by line, so that comments and order stay."""
    lines_between = r"(?:(?:[ \t#][^\n]*)?\n)*?"
    old_value = r"(?:\"[^\"\n]*\"|[^\s#]*)"
    pattern = rf"(?m)^({section}:[^\n]*\n{lines_between}[ \t]+{key}:)[ \t]*{old_value}"
    text, found = re.subn(pattern, lambda m: f"{m[1]} {value}", text, count=1)
    if not found:
        raise ValueError(f"_config.yml has no {section}.{key}")
    return text
