"""The site, built once for all tests that ask for it, served from this machine, and a real browser that looks at it.

They take minutes, so they run by ``pytest -m site tests/docs``, from a folder of its own each time; with
``SCORESDE_SITE=build/site`` they look at what was built there.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from site_build import ROOT, build

EXTENSIONS = ROOT / "docs" / "_ext"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def pytest_configure(config: pytest.Config) -> None:
    sys.path.insert(0, str(EXTENSIONS))
    config.addinivalue_line(
        "markers", "site: builds docs/ and opens it in a browser; run by `pytest -m site tests/docs`"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Left out unless asked for, as thorough tests are."""
    if "site" not in config.getoption("markexpr"):
        out = [item for item in items if item.get_closest_marker("site")]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    if ready := os.environ.get("SCORESDE_SITE"):
        folder = (ROOT / ready).resolve()
        assert (folder / "index.html").exists(), f"SCORESDE_SITE={ready} has no index.html"
        return folder
    pytest.importorskip("furo", reason='the site needs pip install "scoresde[docs]"')
    return build(tmp_path_factory.mktemp("site"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and tells nobody."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where this machine serves the site."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless browser without a past, which tells what it asks for and what it complains of."""
    webdriver = pytest.importorskip("selenium.webdriver", reason='the browser needs pip install "scoresde[docs]"')
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium or no chromedriver on this machine (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
