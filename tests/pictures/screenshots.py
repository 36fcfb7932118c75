"""Take the screenshots of reports/pictures: a study's report and dashboard, in three widths and both themes.

    uv run fbsearch init photos.yaml --images data/images      # a folder with a few hundred colour images
    uv run fbsearch run photos.yaml --trials 40
    uv run fbsearch export --top 5 --output best.yaml
    uv run fbsearch train best.yaml --seeds 3
    uv run python tests/pictures/screenshots.py photos OUTPUT  # the name of the study, and a folder

It reads the study from $FBSEARCH_STORAGE or the default database, and what was trained from `reports`, needs Playwright
and Chromium (Debian: apt-get install chromium), and reduces each picture to 256 colours.
"""

import io
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from playwright.sync_api import sync_playwright

import fbsearch
from fbsearch.api.study import storage_url
from fbsearch.report.dashboard import open_dashboard
from fbsearch.report.http_server import listen
from fbsearch.study.database import open_storage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS, THEMES = (390, 768, 1440), ("light", "dark")
HEIGHTS = {390: 1500, 768: 1400, 1440: 1300}
MAX_BYTES = 200_000
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def shoot(page: "Page", path: Path) -> None:
    """Save what the page shows, with 256 colours."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size <= MAX_BYTES, f"{path}: has {path.stat().st_size:,} bytes"
    print(path, f"{path.stat().st_size:,}")


def pages(browser: "Browser") -> "Iterator[tuple[str, Page]]":
    """Yield a page of each width and theme, and their names."""
    for width in WIDTHS:
        for theme in THEMES:
            size: Any = {"width": width, "height": HEIGHTS[width]}
            context = browser.new_context(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
            yield f"{width}-{theme}", context.new_page()
            context.close()


def shoot_report(browser: "Browser", report: Path, output: Path) -> None:
    """Save the beginning of a report, and of its section on errors."""
    for name, page in pages(browser):
        page.goto(report.absolute().as_uri())
        page.wait_for_selector("html[data-drawn]", state="attached")
        shoot(page, output / f"report-{name}.png")
        page.evaluate("document.querySelector('#errors').scrollIntoView()")
        page.wait_for_timeout(500)
        shoot(page, output / f"errors-{name}.png")


def shoot_dashboard(browser: "Browser", address: str, number: int, output: Path) -> None:
    """Save the figures of a study, and its note."""
    for name, page in pages(browser):
        page.goto(f"{address}/dashboard/studies/{number}")
        page.locator(".js-plotly-plot .gtitle").first.wait_for()
        page.wait_for_timeout(1500)
        shoot(page, output / f"dashboard-{name}.png")
        page.goto(f"{address}/dashboard/studies/{number}/note")
        page.locator("pre").first.wait_for()
        page.wait_for_timeout(500)
        shoot(page, output / f"note-{name}.png")


def main(name: str, output: Path) -> None:
    """Write the report, serve the dashboard, and take all pictures of both."""
    output.mkdir(parents=True, exist_ok=True)
    study, url = fbsearch.open_study(name), storage_url(None)
    report = study.report()
    number = study.optuna._study_id
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = listen(host="127.0.0.1", port=0)
        server.set_app(
            open_dashboard(
                open_storage(url), url, artifacts=Path(folder), host="127.0.0.1", token=None, read_only=False, say=print
            )
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        shoot_report(browser, report, output)
        shoot_dashboard(browser, f"http://127.0.0.1:{server.server_port}", number, output)
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
