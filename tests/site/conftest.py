"""The built site, served on this machine; without one the tests are skipped, in CI they fail."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"


def page_names() -> list[str]:
    """Return every page of the site, by its path: not the root, which only leads to the first."""
    found = (p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html"))
    return sorted(p for p in found if p != "index.html" and not p.startswith("_"))


def has_player(name: str) -> bool:
    """Tell whether there is an animation on a page."""
    return 'class="marl-player' in (SITE / name).read_text(encoding="utf-8")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for every page it asks for (once for none, so that it can fail)."""
    names = page_names()
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names or ["no site"])
    if "name_with_player" in metafunc.fixturenames:
        found = list(filter(has_player, names))
        metafunc.parametrize("name_with_player", found or ["no site"])


@pytest.fixture(scope="session")
def site() -> Path:
    """Return the folder of the built site."""
    if not (SITE / "index.html").exists():
        message = "no built site; `make book` builds it"
        if os.environ.get("MARL_REQUIRE_BROWSER") == "1":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return SITE


class Handler(http.server.SimpleHTTPRequestHandler):
    """A static host: it answers a wrong address with the site's own page for that."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def send_error(self, code: int, *args: object) -> None:
        """Send 404.html."""
        body = (SITE / "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Serve the site; yield its address, with a slash at the end."""
    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
