"""A real browser for the tests: say ``pytest_plugins = ["browser"]`` and take the fixture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # Chromium itself would call home, and a test must see the page's requests alone.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Return the path of a Chromium: the system's, or else the one Playwright downloaded."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def no_browser() -> None:
    """Skip the test, or fail it where ``MARL_REQUIRE_BROWSER=1`` says that a browser is there."""
    message = f"no Chromium found (looked for {', '.join(NAMES)} and Playwright's own)"
    if os.environ.get("MARL_REQUIRE_BROWSER") == "1":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium.

    It lives for one module: Playwright keeps an event loop running in its thread, beside which no
    test could start another.
    """
    path = find_chromium()
    if path is None:
        no_browser()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()
