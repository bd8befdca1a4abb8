"""The page at / in a real browser, over real HTTP: live, without an error, its controls behind the token."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fake_plane import HISTORY, TOKEN, TRAJECTORY, FakePlane
from playwright.async_api import Browser, Error, Page, async_playwright, expect
from token_files import in_process, opened

from kvwattd.api.app import create_app
from kvwattd.api.auth import Access
from kvwattd.api.schemas import InstanceView, TrajectoryView
from kvwattd.api.server import ApiServer, Endpoints
from kvwattd.config import Mode
from kvwattd.dashboard.events import TRAJECTORIES, Frames
from kvwattd.dashboard.files import NAMES, PLOTLY

PATIENCE_MS = 90_000
expect.set_options(timeout=PATIENCE_MS)
PHONE = {"width": 360, "height": 740}
# The browser takes longer to start than any test to run: one for all of them, hence one event loop.
in_one_loop = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Looked:
    """A page in the browser, and what it complained of."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    async def say(self, wanted: str) -> None:
        """Wait until the page answers a control with these words."""
        await self.page.locator("#said").get_by_text(wanted).wait_for()

    async def give_token(self) -> None:
        await self.page.get_by_role("button", name="token").click()
        await self.page.get_by_label("token", exact=True).fill(TOKEN)
        await self.page.get_by_role("button", name="use").click()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium. Skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        try:
            browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"Chromium does not start: {error}")
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def looked(plane: FakePlane, access: Access, browser: Browser) -> AsyncIterator[Looked]:
    """A phone on the page of a daemon of its own."""
    server = ApiServer(create_app(plane, access), Endpoints())
    await server.start()
    context = await browser.new_context(viewport=PHONE, color_scheme="dark")
    page = await context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    looked = Looked(page, server.url)
    page.on("console", lambda said: looked.complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: looked.complaints.append(str(error)))
    await page.goto(server.url)
    await page.get_by_text("live", exact=True).wait_for()
    yield looked
    await context.close()
    await server.stop()


@in_one_loop
async def test_it_is_live_and_complains_of_nothing(looked: Looked, plane: FakePlane) -> None:
    """Plots are drawn, changes show, nothing is fetched from elsewhere, it fits a phone."""
    page = looked.page
    await page.locator("#plot-kv svg.main-svg").first.wait_for()
    await plots_have_the_range_and_the_band(page)
    await plots_begin_before_the_page_was_opened(page)
    regime = str(plane.instances()[0].regime)
    await expect(page.locator("#regime")).to_have_text(regime, use_inner_text=True)
    for place, words in (
        ("#alarms", "FAILSAFE"),  # the other instance
        ("#banner", "nothing is written"),
        ("#tiles", "35.0 % to 41.0 %"),
        ("#why", "would ask for 900 MHz"),
        ("#promises", "98.00 % of 100, an estimate"),
    ):
        await expect(page.locator(place)).to_contain_text(words, use_inner_text=True)
    plane.mode_view = plane.mode_view.model_copy(update={"mode": Mode.OFF})
    await expect(page.get_by_label("mode", exact=True)).to_have_value("off")
    await expect(page.locator("#banner")).to_contain_text("Off.")
    wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    fetched = await page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert fetched
    assert all(name.startswith(looked.url) for name in fetched)
    assert looked.complaints == []


async def comes(page: Page, expression: str, holds: Callable[[Any], bool]) -> Any:
    """What the page says once it holds: the past is fetched, and a frame is drawn, when there is time."""
    until_s = time.monotonic() + PATIENCE_MS / 1e3
    while not holds(found := await page.evaluate(expression)):
        assert time.monotonic() < until_s, found
        await asyncio.sleep(0.05)
    return found


async def plots_have_the_range_and_the_band(page: Page) -> None:
    """The supported clocks as lines, those to choose from as a shade; batch and KV ahead with their band."""
    await comes(
        page,
        "document.getElementById('plot-clock').layout.shapes.map((s) => [s.type, s.y0, s.y1])",
        lambda shapes: shapes == [["rect", 600, 1200], ["line", 210, 210], ["line", 2520, 2520]],
    )
    for plot, low, mean, high in (
        ("plot-batch", [8, 7, 6], [8, 9, 9.5], [8, 11, 13]),
        ("plot-kv", [0.25, 0.24, 0.2], [0.25, 0.27, 0.3], [0.25, 0.3, 0.4]),
    ):
        drawn = await comes(
            page,
            f"document.getElementById('{plot}').data.map((t) => [t.name, Array.from(t.y), t.fill ?? ''])",
            lambda drawn, low=low: ["band", low, ""] in drawn,
        )
        assert ["band", high, "tonexty"] in drawn
        assert ["projected", mean, ""] in drawn
        assert "projected before" in [name for name, _, _ in drawn]


async def plots_begin_before_the_page_was_opened(page: Page) -> None:
    """The daemon's own memory comes first, then what is seen; gaps stay gaps."""
    for plot, known in (("plot-power", [181, 121]), ("plot-kv", [None, 0.25]), ("plot-step", [30, 40])):
        drawn = (
            f"Array.from(document.getElementById('{plot}').data.at({'-1' if plot == 'plot-kv' else '0'}).y)"
        )
        await comes(page, drawn, lambda values, known=known: values[:2] == known and len(values) > 2)


@in_one_loop
async def test_promises_clocks_and_instances_are_set_with_a_token_and_not_without(
    looked: Looked, plane: FakePlane
) -> None:
    """The same form: refused in words before the token is given, done after, and what is set shows."""
    page = looked.page
    await page.get_by_label("tbt limit in seconds").fill("0.25")
    await page.get_by_role("button", name="set promises").click()
    await looked.say("token")
    await looked.give_token()
    await page.get_by_role("button", name="set promises").click()
    await looked.say("done")
    told = plane.slo_views["chat"].tbt
    assert told is not None and told.limit_s == 0.25
    await expect(page.locator("#promises")).to_contain_text("250 ms for 99 %")

    await page.get_by_label("clock in MHz").fill("901")
    await page.get_by_role("button", name="hold this clock").click()
    await looked.say("not a supported clock")
    await page.get_by_label("clock in MHz").fill("900")
    await page.get_by_label("minutes of this clock").fill("2")
    await page.get_by_role("button", name="hold this clock").click()
    await expect(page.locator("#override-left")).to_contain_text("another")
    assert plane.by_hand is not None
    assert (plane.by_hand.clock_mhz, plane.by_hand.left_s) == (900, 120.0)

    await page.get_by_label("number of instances").fill("3")
    await page.get_by_label("minutes of this number").fill("5")
    await page.get_by_role("button", name="scale by hand").click()
    await expect(page.locator("#pool-view")).to_contain_text("3 set by hand")
    assert plane.scale_by_hand is not None
    assert (plane.scale_by_hand.instances, plane.scale_by_hand.left_s) == (3, 300.0)
    await page.locator("#pool").get_by_role("button", name="automatic").click()
    await expect(page.locator("#pool-view")).not_to_contain_text("set by hand")
    assert plane.scale_by_hand is None


@in_one_loop
async def test_the_mode_is_changed_only_when_meant(looked: Looked, plane: FakePlane) -> None:
    """A slip of the thumb changes nothing: it asks first."""
    page, answers = looked.page, [False, True]

    async def answer(dialog: object) -> None:
        await (dialog.accept() if answers.pop(0) else dialog.dismiss())  # type: ignore[attr-defined]

    page.on("dialog", answer)
    await looked.give_token()
    await page.get_by_label("mode", exact=True).select_option("active")
    await expect(page.get_by_label("mode", exact=True)).to_have_value("shadow")
    assert plane.mode_view.mode is Mode.SHADOW
    await page.get_by_label("mode", exact=True).select_option("active")
    await looked.say("done")
    assert plane.mode_view.mode is Mode.ACTIVE
    await expect(page.locator("#banner")).to_be_hidden()


async def test_events_ask_for_a_token_where_reading_does(token_file: Path) -> None:
    """The page itself holds nothing; the data behind it does."""
    async with in_process(create_app(FakePlane(), opened(token_file, "token"))) as stranger:
        assert (await stranger.get("/")).status_code == 200
        assert (await stranger.get("/api/v1/events")).status_code == 401


class Many(FakePlane):
    """More instances than a frame has room for."""

    def instances(self) -> list[InstanceView]:
        chat = super().instances()[0]
        return [chat.model_copy(update={"name": f"chat{n}"}) for n in range(TRAJECTORIES + 3)]

    def trajectory(self, instance: str) -> TrajectoryView | None:
        return TRAJECTORY


async def test_a_frame_has_the_course_of_the_first_instances_and_rest_of_each(
    client: httpx.AsyncClient,
) -> None:
    """Bounded, as it is made on the daemon's loop; the page asks for the one that it shows."""
    frame = json.loads(Frames(Many()).newest().removeprefix("data: "))
    assert len(frame["status"]["instances"]) == TRAJECTORIES + 3
    assert list(frame["trajectories"]) == [f"chat{n}" for n in range(TRAJECTORIES)]
    one = (await client.get("/api/v1/instances/chat/trajectory")).json()
    assert one == frame["trajectories"]["chat0"] == TRAJECTORY.model_dump()
    assert (await client.get("/api/v1/instances/nobody/trajectory")).status_code == 404


async def test_the_past_is_told_by_instance(client: httpx.AsyncClient) -> None:
    """Once for a page that is opened, not with every frame."""
    assert (await client.get("/api/v1/instances/chat/history")).json() == HISTORY.model_dump()
    assert (await client.get("/api/v1/instances/nobody/history")).status_code == 404
    assert "history" not in Frames(FakePlane()).newest()


async def test_every_file_is_served_with_its_headers(client: httpx.AsyncClient) -> None:
    """Types, no foreign sources, answers to a browser that has the file already; no other file."""
    folder = Path(__file__).parents[2] / "daemon" / "kvwattd" / "dashboard" / "page"
    assert {path.name for path in folder.iterdir()} == {*NAMES, "index.html"}
    for name in (*NAMES, PLOTLY):
        answer = await client.get(f"/dashboard/{name}")
        assert answer.status_code == 200, name
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = await client.get(f"/dashboard/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert (await client.get("/dashboard/files.py")).status_code == 404
    assert (await client.get("/dashboard/..%2f__init__.py")).status_code == 404
