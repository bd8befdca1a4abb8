"""The page at / in a real browser, over real HTTP: live, without an error, its controls behind the token."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from fake_plane import TOKEN, FakePlane
from playwright.async_api import Error, Page, async_playwright, expect
from token_files import in_process, opened

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.server import ApiServer, Endpoints
from kvwattd.config import Mode
from kvwattd.dashboard.files import NAMES, PLOTLY

PATIENCE_MS = 20_000
PHONE = {"width": 360, "height": 740}


@dataclass
class Looked:
    """A page in the browser, and what it complained of."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
async def served(plane: FakePlane, access: Access) -> AsyncIterator[str]:
    server = ApiServer(create_app(plane, access), Endpoints())
    await server.start()
    yield server.url
    await server.stop()


@pytest.fixture
async def looked(served: str) -> AsyncIterator[Looked]:
    """Chromium on the page. Skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        page = await browser.new_page(viewport=PHONE, color_scheme="dark")
        page.set_default_timeout(PATIENCE_MS)
        looked = Looked(page, served)
        page.on("console", lambda said: looked.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: looked.complaints.append(str(error)))
        await page.goto(served)
        await page.get_by_text("live", exact=True).wait_for()
        yield looked
        await browser.close()


async def test_it_is_live_and_complains_of_nothing(looked: Looked, plane: FakePlane) -> None:
    """Plots are drawn, changes show, nothing is fetched from elsewhere, it fits a phone."""
    page = looked.page
    await page.locator("#plot-clock svg.main-svg").first.wait_for()
    assert await page.locator("#regime").inner_text() == plane.instances()[0].regime
    assert "FAILSAFE" in await page.locator("#alarms").inner_text()  # the other instance
    plane.mode_view = plane.mode_view.model_copy(update={"mode": Mode.OFF})
    await expect(page.get_by_label("mode", exact=True)).to_have_value("off")
    wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    fetched = await page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert fetched
    assert all(name.startswith(looked.url) for name in fetched)
    assert looked.complaints == []


async def test_a_promise_is_changed_with_a_token_and_not_without(looked: Looked, plane: FakePlane) -> None:
    """The same form: refused in words before the token is given, done after."""
    page = looked.page
    await page.get_by_label("tbt limit in seconds").fill("0.25")
    await page.get_by_role("button", name="promise this").click()
    await page.get_by_role("alert").get_by_text("token").wait_for()
    await page.get_by_role("button", name="token").click()
    await page.get_by_label("token", exact=True).fill(TOKEN)
    await page.get_by_role("button", name="use").click()
    await page.get_by_role("button", name="promise this").click()
    await page.get_by_role("alert").get_by_text("done").wait_for()
    told = plane.slo_views["chat"].tbt
    assert told is not None
    assert told.limit_s == 0.25


async def test_events_ask_for_a_token_where_reading_does(token_file: Path) -> None:
    """The page itself holds nothing; the data behind it does."""
    async with in_process(create_app(FakePlane(), opened(token_file, "token"))) as stranger:
        assert (await stranger.get("/")).status_code == 200
        assert (await stranger.get("/api/v1/events")).status_code == 401


async def test_every_file_is_served_with_its_headers(client: httpx.AsyncClient) -> None:
    """Types, no foreign sources, answers to a browser that has the file already; no other file."""
    for name in (*NAMES, PLOTLY):
        answer = await client.get(f"/dashboard/{name}")
        assert answer.status_code == 200, name
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = await client.get(f"/dashboard/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert (await client.get("/dashboard/files.py")).status_code == 404
    assert (await client.get("/dashboard/..%2f__init__.py")).status_code == 404
