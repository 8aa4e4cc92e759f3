"""Open reports in a headless browser and fail on an error, a request, or a page that is wider than its window.

``python tests/report/browser_check.py REPORT.html ... [--screenshots FOLDER]``; `make report-check` does it for reports
of every sort. The browser is Chromium, from the environment variable CHROMIUM or the path; without one the check fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Dialog, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (1280, 400)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Letters smaller than this many pixels cannot be read.
SMALLEST_LETTERS = 11


def find_browser() -> str:
    """Return the path of Chromium.

    Raises
    ------
    SystemExit
        If there is none: a check that was not made must not look like one that passed.
    """
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        sys.exit("browser_check: expected Chromium on the path or in CHROMIUM, got none; install it")
    return found


def check(browser: Browser, file: Path, width: int, screenshots: Path | None) -> list[str]:
    """Return what is wrong with a report in a window of a width."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    faults: list[str] = []
    address = file.resolve().as_uri()

    def note(kind: str, what: str, fault: bool = True) -> None:
        if fault:
            faults.append(f"{kind}: {what}")

    def dismiss(dialog: Dialog) -> None:
        note("dialog", dialog.message)
        dialog.dismiss()

    page.on("console", lambda line: note("console", line.text, line.type in ("error", "warning")))
    page.on("pageerror", lambda error: note("script", str(error)))
    page.on("dialog", dismiss)
    page.on("request", lambda request: note("request", request.url, not request.url.startswith(("data:", address))))
    page.goto(address, wait_until="load")
    faults += _layout(page, width)
    if page.locator("#explorer").count():
        faults += _explorer(page)
    faults += _layout(page, width)
    if screenshots is not None:
        screenshots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshots / f"{file.stem}-{width}.png", full_page=True)
    page.close()
    return [f"{file} at {width}: {fault}" for fault in faults]


def _layout(page: Page, width: int) -> list[str]:
    """Return what does not fit or cannot be read."""
    faults = []
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        faults.append(f"layout: {wide} pixels wide")
    small = page.evaluate(
        """least => [...document.querySelectorAll("body *:not(script)")].filter(
            node => node.checkVisibility() && [...node.childNodes].some(c => c.nodeType === 3 && c.data.trim())
                && parseFloat(getComputedStyle(node).fontSize) < least).map(node => node.tagName)""",
        SMALLEST_LETTERS,
    )
    faults += [f"layout: small letters in {name}" for name in sorted(set(small))]
    broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    return [*faults, *([f"layout: {broken} images that do not show"] if broken else [])]


def _explorer(page: Page) -> list[str]:
    """Return what the interactive figure does not do."""
    faults: list[str] = []
    seen = [("", "")]

    def changed(what: str) -> None:
        seen.append((page.inner_text("#readout"), page.inner_html("#plot")))
        if seen[-1] == seen[-2]:
            faults.append(f"explorer: {what} changes nothing")

    changed("loading")
    if page.locator("#series option").count() > 1:
        page.click("#next")
        changed("next")
        page.locator("tr[data-series]").first.click()
        changed("a row of the table")
    page.check("#difference")
    changed("the difference")
    page.uncheck("#difference")
    changed("the drift")
    box = page.locator("#plot").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    changed("pointing")
    page.locator("#step").press("Home")
    changed("the slider")
    page.locator("#step").press("End")
    changed("the end of the slider")
    return faults


def main() -> None:
    """Check the reports that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--screenshots", type=Path)
    arguments = parser.parse_args()
    path = find_browser()
    with sync_playwright() as play:
        # A fresh profile each time is what playwright gives a browser.
        browser = play.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        faults = [
            fault
            for report in arguments.reports
            for width in WIDTHS
            for fault in check(browser, report, width, arguments.screenshots)
        ]
        version = browser.version
        browser.close()
    print("\n".join(faults) or f"{len(arguments.reports)} reports at {WIDTHS} pixels: no fault, Chromium {version}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
