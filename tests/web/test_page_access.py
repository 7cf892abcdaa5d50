"""The page for those who cannot see it, or use no mouse: checked by axe-core, in a real browser.

axe-core is an npm package; ``npm install --prefix FOLDER axe-core`` puts it where ``AXE_CORE=FOLDER`` says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer
from tests.helpers.proxyprocess import fooproxy, settles
from tests.web.test_page import Page, browser, clients, opened, pytestmark, steady

__all__ = ["browser", "pytestmark", "steady"]

AXE = Path(os.environ.get("AXE_CORE", ".")).joinpath("node_modules", "axe-core", "axe.min.js")

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm install --prefix FOLDER axe-core, and set AXE_CORE to FOLDER")
    return AXE.read_text()


@pytest.fixture(scope="module")
def several(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page with all of its parts: several servers, clients and sessions."""
    with FooServer() as one, FooServer() as other:
        words = [word for server in (one, other) for word in ("--forward", f"127.0.0.1:{server.port}")]
        with (
            fooproxy(tmp_path_factory.mktemp("several"), *words) as proxy,
            opened(browser, proxy) as page,
            clients(proxy, 20, 20, 20),
        ):
            settles(lambda: len(page.column("id")), 3)
            settles(lambda: page.run("return document.querySelectorAll('#client-rows tr').length"), 1)
            yield page


FOCUSED = """
    const focused = document.activeElement;
    return focused.id || focused.textContent.trim() || focused.getAttribute("aria-labelledby");
"""
"""Names what has the focus."""


def complaints(page: Page, axe: str) -> list[str]:
    """Return what axe-core finds, with the elements it finds it in."""
    page.run(axe)
    found = page.browser.execute_async_script(
        """
        const [rules, done] = arguments;
        axe.run(document, { runOnly: rules }).then(({ violations }) => done(violations.map(
            ({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).slice(0, 5).join(", ")}`)));
        """,
        RULES,
    )
    return [str(line) for line in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["ok", "degraded", "not-ready", "draining", "lost", "paused"])
def test_axe_finds_nothing(several: Page, axe: str, scheme: str, state: str) -> None:
    page = several
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        page.run("document.documentElement.dataset.state = arguments[0]", state)
        page.run("document.documentElement.classList.toggle('old', arguments[0])", state in ("lost", "paused"))
        assert complaints(page, axe) == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.run("document.documentElement.classList.remove('old')")


def test_all_controls_can_be_reached_by_the_tab_key_in_the_order_of_the_page(several: Page) -> None:
    keys = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
    several.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(30):
        for kind in ("rawKeyDown", "keyUp"):
            several.browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, **keys})
        reached.append(several.run(FOCUSED))
    for name in ("range", "pause", "filter", "limit", "Age", "/stats"):
        assert name in reached, reached
    order = [reached.index(name) for name in ("range", "pause", "filter", "limit", "Age", "/stats")]
    assert order == sorted(order)


def test_the_focus_can_be_seen(several: Page) -> None:
    several.run("document.getElementById('pause').focus({ focusVisible: true })")
    assert several.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
