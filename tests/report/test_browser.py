"""The report in a real browser: Debian's Chromium, opened from the file, without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, PATIENCE, WIDTHS, has_white
from made_studies import make_study
from optuna.storages import RDBStorage

from fbsearch.report.page import write_report
from fbsearch.study.database import open_storage
from tests.report.test_final_results import competitor, training, write_comparison, write_predictions, write_summary

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip
SCRIPT = "<script>document.title = 'owned'</script>\"'&"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One report for all tests, which only read it."""
    folder = tmp_path_factory.mktemp("report")
    storage = open_storage(f"sqlite:///{folder / 'fbsearch.db'}", create=True)
    path = write_report(make_study(storage, 60), folder / "report.html")
    storage.engine.dispose()
    return path


class Visit:
    """A page that was opened and has drawn its figures, with what it said and what it asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.page = self.context.new_page()
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]", state="attached")

    def ask(self, code: str) -> Any:
        return self.page.evaluate(code)


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    visits: list[Visit] = []

    def open_page(path: Path, *, width: int = 1440, scheme: str = "light", **options: Any) -> Visit:
        size = {"width": width, "height": 900}
        visits.append(Visit(browser, path, viewport=size, color_scheme=scheme, **options))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.context.close()


def test_report_opens_without_errors_and_asks_nobody(report: Path, visit: Any) -> None:
    seen = visit(report)
    assert seen.console == []
    assert {url.partition(":")[0] for url in seen.requests} <= {"file", "data"}
    assert [url for url in seen.requests if url.startswith("file:")] == [report.as_uri()]


def test_report_figures_are_drawn_and_have_data(report: Path, visit: Any) -> None:
    figures = visit(report).ask(
        "() => [...document.querySelectorAll('[data-figure]')].map(node => ({"
        "name: node.dataset.figure, svg: node.querySelectorAll('svg.main-svg').length, height: node.clientHeight,"
        "points: node._fullData.reduce((n, t) => n + (t.z ? t.z.length : t.x.length), 0)}))"
    )
    assert len(figures) >= 18
    for figure in figures:
        assert figure["svg"] > 0 and figure["points"] > 0 and figure["height"] >= 90, figure["name"]


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_does_not_scroll_sideways(report: Path, visit: Any, width: int, scheme: str) -> None:
    seen = visit(report, width=width, scheme=scheme)
    assert seen.ask("() => document.scrollingElement.scrollWidth") <= width
    assert seen.ask(
        "() => [...document.querySelectorAll('[data-figure]')].every(n => n.querySelector('svg').clientWidth <= "
        "n.clientWidth)"
    )


def brightness(color: str) -> float:
    return sum(float(part) for part in color.partition("(")[2].rstrip(")").split(",")[:3]) / 3


INK = "() => getComputedStyle(document.querySelector('[data-figure=history] .xtick text')).fill"
GROUND = "() => getComputedStyle(document.body).backgroundColor"


def test_report_follows_the_system_and_can_be_switched(report: Path, visit: Any) -> None:
    seen = visit(report, scheme="dark")
    assert brightness(seen.ask(GROUND)) < 60 < 180 < brightness(seen.ask(INK))
    seen.page.click("#theme")
    assert brightness(seen.ask(GROUND)) > 230
    assert brightness(seen.ask(INK)) < 90
    seen.page.emulate_media(color_scheme="light")
    seen.page.click("#theme")
    assert brightness(seen.ask(GROUND)) < 60 < 180 < brightness(seen.ask(INK))


def test_report_is_light_on_paper(report: Path, visit: Any) -> None:
    seen = visit(report, scheme="dark")
    seen.page.emulate_media(media="print")
    seen.page.evaluate("() => { dispatchEvent(new Event('beforeprint')) }")
    assert brightness(seen.ask(GROUND)) == 255
    assert brightness(seen.ask(INK)) < 90
    assert seen.ask("() => document.querySelector('[data-figure=history] svg').clientWidth") == 655
    seen.page.evaluate("() => { dispatchEvent(new Event('afterprint')) }")
    assert brightness(seen.ask(INK)) > 180


def test_report_figures_fit_when_the_window_is_resized(report: Path, visit: Any) -> None:
    seen = visit(report)
    seen.page.set_viewport_size({"width": 500, "height": 900})
    narrow = "document.querySelector('[data-figure=history] svg').clientWidth < 500"
    seen.page.wait_for_function(f"() => {narrow} && document.scrollingElement.scrollWidth <= 500", timeout=60_000)


def test_report_configuration_opens_where_it_is_linked(report: Path, visit: Any) -> None:
    seen = visit(report)
    seen.page.click("summary:has-text('Rank 1, trial')")
    text = seen.page.inner_text("#rank1 pre")
    assert text.startswith("format: fbsearch-export/1")
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen.page.click("#rank1 .copy")
    seen.page.wait_for_selector("#rank1 .copy:has-text('Copied')")
    assert seen.ask("() => navigator.clipboard.readText()") == seen.ask(
        "() => document.querySelector('#rank1 pre').textContent"
    )
    with seen.page.expect_download() as download:
        seen.page.click("#rank1 a[download]")
    assert download.value.suggested_filename == "digits-rank1.yaml"
    assert Path(download.value.path()).read_text() == text + ("" if text.endswith("\n") else "\n")


def test_report_of_a_hostile_name_runs_nothing(storage: RDBStorage, tmp_path: Path, visit: Any) -> None:
    path = write_report(make_study(storage, 9, name=SCRIPT), tmp_path / "report.html")
    seen = visit(path, width=390)
    assert seen.page.title() == f"{SCRIPT} - fbsearch report"
    assert seen.page.inner_text("h1") == SCRIPT
    assert seen.console == []
    assert seen.ask("() => document.scrollingElement.scrollWidth") <= 390


def test_report_of_what_was_trained_after_the_search_can_be_read_at_every_width_in_both_themes(
    storage: RDBStorage, tmp_path: Path, visit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = make_study(storage, 30)
    (tmp_path / "reports" / "digits").mkdir(parents=True)
    write_summary(training(study))
    write_comparison(competitor(kind="winner"), competitor(name=SCRIPT), competitor(name="x", failure=SCRIPT))
    write_predictions(class_names=(SCRIPT, "\u00dcbergr\u00f6\u00dfentr\u00e4ger", "\u65e5\u672c"))
    seen = visit(write_report(study).absolute())
    for width in WIDTHS:
        seen.page.set_viewport_size({"width": width, "height": 900})
        seen.page.wait_for_function(
            "() => [...document.querySelectorAll('[data-figure]')].every(n => n.querySelector('svg').clientWidth <= "
            f"n.clientWidth) && document.scrollingElement.scrollWidth <= {width}",
            timeout=60_000,
        )
        for scheme in ("light", "dark"):
            seen.page.emulate_media(color_scheme=scheme)
            assert (brightness(seen.ask(GROUND)) > 230) == (scheme == "light")
            seen.page.wait_for_function(f"() => ({INK})().length > 0")
            assert has_white(seen.page.screenshot(full_page=True)) == (scheme == "light"), width
        # What does not fit into its box says so by a shadow, and by nothing where all of it fits.
        cut = "n => n.scrollWidth > n.clientWidth && getComputedStyle(n).backgroundImage == 'none'"
        assert seen.ask(f"() => [...document.querySelectorAll('.box, pre, nav')].filter({cut}).length") == 0
    assert seen.console == []
    for name, marks in (("trainings", 5), ("comparison", 2)):
        points = f"() => document.querySelectorAll('[data-figure={name}] path.point').length"
        assert seen.ask(points) == marks, name
    assert SCRIPT in seen.page.inner_text("#retrained table >> nth=1")
    assert SCRIPT in seen.page.inner_text("#errors table >> nth=0")
    shown = "() => [...document.querySelectorAll('.mistakes img')].filter(image => image.naturalWidth).length"
    assert seen.ask(shown) == 24
    assert seen.ask("() => document.querySelectorAll('[data-figure=confusion] .hm image').length") == 2


@pytest.mark.parametrize("count", [0, 1])
def test_report_of_hardly_anything_opens(storage: RDBStorage, tmp_path: Path, visit: Any, count: int) -> None:
    seen = visit(write_report(make_study(storage, count), tmp_path / "report.html"), width=390)
    assert seen.console == []
    assert seen.ask("() => document.scrollingElement.scrollWidth") <= 390
