"""Screenshots of the page for README and docs/dashboard.md, taken of the demo.

    python docs/screenshots.py            docs/images/page-*.png, in about two minutes
    python docs/screenshots.py --seconds 20 --out /tmp/images

Needs Chromium on PATH and the extra `dev`. What is shown is whatever the demo did: nothing is drawn by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

DEMO = [sys.executable, "-m", "kvwattd", "demo", "--seconds", "60", "--keep"]
MOST_BYTES = 200_000
SHADOW_S = 25.0  # until what would have been saved is estimated


class Shot(NamedTuple):
    """Name, size in CSS pixels, and scheme."""

    name: str
    width: int
    height: int
    scheme: Any
    scale: float = 1.0


LOOKS = (
    Shot("light", 1280, 1000, "light"),
    Shot("dark", 1280, 1000, "dark"),
    Shot("phone", 390, 844, "dark", 1.5),
)
SHADOW = Shot("shadow", 1280, 620, "light")


@contextmanager
def demo() -> Iterator[tuple[str, str]]:
    """Address of its page, and the token for its controls."""
    with subprocess.Popen(
        DEMO, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            told, found, lines = "", None, process.stdout or iter(())
            for line in lines:
                told += line
                found = re.search(r"page: (?P<url>http://\S+)/\n.*controls: (?P<token>\S+)", told)
                if found is not None:
                    break
            if found is None:
                raise SystemExit(f"the demo did not tell its page:\n{told}")
            yield found["url"], found["token"]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def look(browser: Browser, url: str, shot: Shot) -> Page:
    """The page as somebody with this screen sees it."""
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,
        device_scale_factor=shot.scale,
    )
    page = context.new_page()
    page.goto(url)
    page.get_by_text("live", exact=True).wait_for()
    return page


def take(page: Page, shot: Shot, folder: Path) -> None:
    """Write it down; one that is too large for a README is an error."""
    path = folder / f"page-{shot.name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    sys.stdout.write(f"{path}: {size / 1000:.0f} kB\n")
    if size > MOST_BYTES:
        raise SystemExit(f"{path}: {size} bytes, at most {MOST_BYTES} are wanted")


def to_shadow(url: str, token: str) -> None:
    """Switch the demo's daemon to shadow mode."""
    request = urllib.request.Request(  # noqa: S310  # the demo's own address
        f"{url}/api/v1/mode",
        data=json.dumps({"mode": "shadow"}).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=75.0, help="of traffic before they are taken")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium on PATH (Debian: apt-get install chromium)")
    options.out.mkdir(parents=True, exist_ok=True)
    with demo() as (url, token), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        pages = [(look(browser, url, shot), shot) for shot in LOOKS]
        time.sleep(options.seconds)
        for page, shot in pages:
            page.bring_to_front()
            page.wait_for_timeout(1500)
            take(page, shot, options.out)
        to_shadow(url, token)
        page = look(browser, url, SHADOW)
        page.wait_for_timeout(1000 * SHADOW_S)
        take(page, SHADOW, options.out)
        browser.close()


if __name__ == "__main__":
    main()
