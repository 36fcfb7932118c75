"""The dashboard in a real browser and through real sockets: its content, and the requests that its guard refuses."""

import base64
import contextlib
import http.client
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import made_studies
import optuna
import optuna_dashboard
import pytest
from chromium import CHROMIUM, PATIENCE, WIDTHS, has_white
from optuna.trial import TrialState

from fbsearch.cli.app import main
from fbsearch.config.export_file import load_export
from fbsearch.config.study_file import StudyConfig
from fbsearch.report.dashboard import annotate, annotate_all
from fbsearch.report.http_guard import Guard, is_loopback
from fbsearch.report.notes import escape, study_note
from fbsearch.report.text import describe_importance, describe_part
from fbsearch.report.trials_table import trials_frame
from fbsearch.report.worth import estimate_worth
from fbsearch.study.dashboard_storage import ArtifactFolder, FeasibleBest
from fbsearch.study.database import open_storage
from fbsearch.study.locks import claim_study
from fbsearch.study.sampling import sample
from fbsearch.study.study import best_trials, create_study
from fbsearch.study.trial_record import fail
from tests.report.test_final_results import FOLDER, training, write_predictions, write_summary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow  # processes that import torch

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TOKEN = "ein geheimes Wört"
NASTY = "<script>document.title='run'</script> \"x\" & 'y' | `z`"
IS_DARK = "parseInt(getComputedStyle(document.body).backgroundColor.slice(4)) < 60"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


def make_study(storage: Any, *, name: str = "digits", num_trials: int = 14, **ends: Any) -> optuna.Study:
    """A study as a search leaves it: most trials complete, each fourth pruned, one failed."""
    config = StudyConfig(name=name)
    study = create_study(storage, config)
    study.set_user_attr(
        "dataset",
        {"num_classes": 10, "in_channels": 1, "image_size": 8, "num_train": 1150, "num_val": 287, "num_test": 360},
    )
    for number in range(num_trials):
        trial = study.ask()
        stored = config.trial(sample(trial, config), seed=number)
        trial.set_user_attr("config", stored.model_dump(mode="json"))
        trial.set_user_attr("num_parameters", 1000 * (number + 1))
        trial.set_user_attr("flops", 50000)
        trial.set_user_attr("environment", {"versions": {"torch": "2"}})
        epochs = 2 if number % 4 == 3 else 8
        accuracies = [round(0.3 + 0.6 * epoch / 8 + number / 1000, 4) for epoch in range(1, epochs + 1)]
        trial.set_user_attr("history", [{"epoch": i, "val_accuracy": v} for i, v in enumerate(accuracies, start=1)])
        trial.set_user_attr("seconds", 3.0)
        for epoch, accuracy in enumerate(accuracies, start=1):
            trial.report(accuracy, epoch)
        if number == num_trials - 1 and number > 0:
            fail(study, number, kind="out_of_memory", message="no memory")
        elif epochs == 2:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, accuracies[-1])
    return study


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def dashboard(url: str, folder: Path, *flags: str) -> Iterator[str]:
    """A dashboard in a process of its own; Ctrl-C must end it cleanly."""
    port = free_port()
    command = [sys.executable, "-m", "fbsearch", "dashboard", "--storage", url, "--port", str(port), *flags]
    with (folder / f"{port}.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 180
            while f":{port}/  (Ctrl-C ends it)" not in Path(log.name).read_text():
                assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(timeout=120)
            finally:
                process.kill()
        said = Path(log.name).read_text()
        assert code == 0 and said.endswith("ended\n") and "Traceback" not in said, said


def ask(
    address: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(
        address, data=body, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A dashboard that may write, on a database with two studies: 1 digits, 2 with a nasty name."""
    url = f"sqlite:///{folder / 'open.db'}"
    storage = open_storage(url, create=True)
    make_study(storage)
    make_study(storage, name=NASTY, num_trials=3)
    storage.engine.dispose()
    with dashboard(url, folder) as base:
        yield base


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[tuple[str, str]]:
    """A read-only dashboard with a token: its address, its database."""
    url = f"sqlite:///{folder / 'locked.db'}"
    storage = open_storage(url, create=True)
    make_study(storage, num_trials=2)
    storage.engine.dispose()
    with dashboard(url, folder, "--read-only", "--token", TOKEN) as base:
        yield base, url


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@contextlib.contextmanager
def page_of(browser: "Browser", base: str, **options: Any) -> "Iterator[Page]":
    """A page; afterwards: no error in its console, no dialog, no request to anywhere else."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, **options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda r: None if r.url.startswith((base, "data:", "blob:")) else wrong.append(r.url))
    yield page
    context.close()
    assert wrong == []


# ------------------------------------------------------------------------------------------------- in the browser


@needs_browser
def test_dashboard_shows_our_figures_and_note(browser: "Browser", address: str) -> None:
    with page_of(browser, address) as page:
        page.goto(address)
        page.get_by_text("digits").first.click()
        for title, drawn, least in (
            ("Accuracy against parameters", "path.point", 10),
            ("Learning curves", "path.js-line", 2),
            ("Accuracy by pattern", "path.point", 10),
        ):
            figure = page.locator(".js-plotly-plot", has=page.locator(".gtitle", has_text=title))
            figure.locator(drawn).nth(least - 1).wait_for()
        page.goto(f"{address}/dashboard/studies/1/note")
        page.get_by_role("heading", name="Best: 91.20% validation accuracy, trial 12").wait_for()
        assert page.get_by_role("cell", name="13,000").is_visible()
        assert "fbsearch export digits --top 5 --output best.yaml" in page.locator("pre").inner_text()


@needs_browser
def test_dashboard_trial_shows_configuration_and_files_without_scrolling_sideways(
    browser: "Browser", address: str, tmp_path: Path
) -> None:
    with page_of(browser, address) as page:
        page.goto(f"{address}/dashboard/studies/1/trials?numbers=12")
        note = page.locator("pre", has_text="fbsearch-export/1")
        note.wait_for()
        (tmp_path / "best.yaml").write_text(note.inner_text())
        (config,) = load_export(tmp_path / "best.yaml").configs
        assert (config.rank, config.trial) == (1, 12)
        page.get_by_text("learning-curve.csv").wait_for()
        mask = page.locator("img[alt^='mask-']")
        mask.wait_for()
        page.wait_for_function("element => element.naturalWidth == 256", arg=mask.element_handle())
        assert page.evaluate("document.documentElement.scrollWidth") <= 1440
        page.set_viewport_size({"width": 390, "height": 844})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_dashboard_pages_can_be_read_at_every_width_in_both_themes(
    browser: "Browser", address: str, width: int
) -> None:
    with page_of(browser, address) as page:
        page.set_viewport_size({"width": width, "height": 844})
        for path, there in (("", "main h5"), ("/studies/1", ".js-plotly-plot .gtitle"), ("/studies/1/note", "pre")):
            page.goto(f"{address}/dashboard{path}")
            page.locator(there).first.wait_for()
            page.wait_for_timeout(300)
            for scheme in ("dark", "light"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_function(f"() => {IS_DARK} == {json.dumps(scheme == 'dark')}")
                page.wait_for_timeout(500)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                assert has_white(page.screenshot(full_page=True)) == (scheme == "light"), (path, scheme)
        page.goto(f"{address}/dashboard/studies/1")
        page.locator(".js-plotly-plot .gtitle").first.wait_for()
        widths = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map(e => e.clientWidth)")
        assert len(widths) >= 6 and min(widths) >= 0.75 * min(width, 640), "a figure has the width of the page, or half"
        bar = page.locator(".MuiDrawer-paper").bounding_box()
        assert bar is not None and (bar["y"] > 700 if width == 390 else bar["height"] > 700)
        inside = "e => e.scrollWidth <= e.clientWidth"
        assert page.locator("h3", has_text="0.91").evaluate(inside), "the best value is not cut off"
        last = page.locator(".MuiDrawer-paper li").last.bounding_box()
        assert last is not None and last["x"] + last["width"] <= width


@needs_browser
def test_dashboard_shows_a_name_with_html_as_text(browser: "Browser", address: str) -> None:
    with page_of(browser, address) as page:
        page.goto(f"{address}/dashboard")
        page.get_by_text(NASTY).first.wait_for()
        for path in ("", "/note", "/trials?numbers=0"):
            page.goto(f"{address}/dashboard/studies/2{path}")
            page.get_by_text(NASTY).first.wait_for()
            assert page.title() == "Optuna Dashboard"


@needs_browser
def test_dashboard_an_html_artifact_is_not_run(browser: "Browser", address: str) -> None:
    html = "<script>parent.ran = true; document.title = 'ran'</script>"
    with page_of(browser, address) as page:
        page.goto(f"{address}/dashboard/studies/1")
        upload = """async html => (await (await fetch('/api/artifacts/1', {method: 'POST',
            headers: {'Content-Type': 'application/json'},
            body: JSON.stringify({filename: 'x.html', file: 'data:text/html;base64,' + btoa(html)})
        })).json()).artifact_id"""
        path = f"/artifacts/1/{page.evaluate(upload, html)}"
        status, headers, body = ask(address + path)
        assert (status, body.decode(), headers["Content-Type"]) == (200, html, "application/octet-stream")
        assert (headers["Content-Disposition"], headers["X-Content-Type-Options"]) == ("attachment", "nosniff")
        assert "sandbox" in headers["Content-Security-Policy"] and "Access-Control-Allow-Origin" not in headers
        with page.expect_download():
            page.evaluate("path => { location.href = path }", path)
        embed = "path => { const f = document.createElement('iframe'); f.src = path; document.body.append(f) }"
        with page.expect_download():
            page.evaluate(embed, path)
        assert page.evaluate("window.ran") is None and page.title() == "Optuna Dashboard"


@needs_browser
def test_dashboard_another_sites_page_changes_nothing(browser: "Browser", address: str, folder: Path) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "index.html").write_text("<title>another site</title>")

    class Site(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder / "site"))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{site.server_port}/")
        attack = "([url, options]) => fetch(url, options).then(() => 'sent', () => 'refused')"
        assert page.evaluate(attack, [f"{address}/api/studies/1", {"method": "DELETE"}]) == "refused"
        body = json.dumps({"study_name": "theirs", "directions": ["minimize"]})
        page.evaluate(attack, [f"{address}/api/studies", {"method": "POST", "mode": "no-cors", "body": body}])
        assert page.evaluate(attack, [f"{address}/api/studies", {}]) == "refused", "nor may it read"
        context.close()
        site.shutdown()
    names = [study["study_name"] for study in json.loads(ask(f"{address}/api/studies")[2])["study_summaries"]]
    assert names == ["digits", NASTY]


@needs_browser
def test_dashboard_asks_for_a_token_and_lets_in_who_knows_it(browser: "Browser", locked: tuple[str, str]) -> None:
    base, _ = locked
    with page_of(browser, base, http_credentials={"username": "", "password": TOKEN}) as page:
        page.goto(base)
        page.get_by_text("digits").first.wait_for()
    context = browser.new_context(http_credentials={"username": "x", "password": "wrong"})
    context.set_default_timeout(PATIENCE)
    answer = context.new_page().goto(base)
    assert answer is not None and answer.status == 401
    context.close()


# ------------------------------------------------------------------------------------------------ through sockets


def test_dashboard_host_of_another_is_refused(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    for name, expected in (("evil.example", 403), ("127.0.0.1.evil.example", 403), (f"localhost:{port}", 302)):
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        connection.request("GET", "/", headers={"Host": name})
        assert connection.getresponse().status == expected
        connection.close()


def test_dashboard_read_only_refuses_to_change_and_has_changed_nothing(locked: tuple[str, str]) -> None:
    base, url = locked
    known = f"Basic {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}"
    for method in ("DELETE", "POST", "PUT", "OPTIONS"):
        status, headers, body = ask(f"{base}/api/studies/1", method, b"{}", Authorization=known, Origin=base)
        assert (status, headers["Allow"]) == (405, "GET, HEAD") and b"read-only" in body
    status, headers, _ = ask(f"{base}/api/studies", "GET")
    assert status == 401 and headers["WWW-Authenticate"].startswith("Basic ")
    assert ask(f"{base}/api/studies", Authorization=known)[0] == 200
    storage = open_storage(url)
    study = optuna.load_study(storage=storage, study_name="digits")
    assert storage.get_study_system_attrs(study._study_id) == {} and len(study.trials) == 2
    storage.engine.dispose()
    assert not Path(url.removeprefix("sqlite:///")).with_suffix(".artifacts").exists()


def test_dashboard_open_its_own_page_may_delete(address: str) -> None:
    body = json.dumps({"study_name": "victim", "directions": ["minimize"]}).encode()
    json_type = {"Content_Type": "application/json"}
    for source in ("http://evil.example", "null", f"{address}0"):
        assert ask(f"{address}/api/studies", "POST", body, Origin=source, **json_type)[0] == 403
        assert ask(f"{address}/api/studies", "POST", body, Referer=f"{source}/x", **json_type)[0] == 403
    status, _, made = ask(f"{address}/api/studies", "POST", body, Origin=address, **json_type)
    assert status == 201
    number = json.loads(made)["study_summary"]["study_id"]
    assert ask(f"{address}/api/studies/{number}", "DELETE", b"{}", Origin="http://evil.example", **json_type)[0] == 403
    assert ask(f"{address}/api/studies/{number}", "DELETE", b"{}", Origin=address, **json_type)[0] == 204


def test_dashboard_open_while_a_search_runs_does_not_disturb_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'live.db'}"
    open_storage(url, create=True).engine.dispose()
    small = {
        "name": "live",
        "data": {"limit": 100},
        "model": {"base_channels": 4, "pattern_resolution": 8, "fractal_levels": [1]},
        "train": {"epochs": 20},
        "space": {"train.learning_rate": {"low": 0.003, "high": 0.05, "log": True}},
        "search": {"pruner": "none"},
    }
    (tmp_path / "live.yaml").write_text(json.dumps(small))
    # Two workers have a thread each: one would have two, which wait for each other where other programs run.
    run = [sys.executable, "-m", "fbsearch", "run", "live.yaml", "--trials", "8", "--workers", "2", "--storage", url]
    with (
        dashboard(url, tmp_path) as base,
        subprocess.Popen([*run, "--device", "cpu"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as search,
    ):

        def complete() -> int:
            """Return the number of complete trials that the dashboard shows, -1 before it has the study."""
            status, _, body = ask(f"{base}/api/studies/1")
            return sum(t["state"] == "Complete" for t in json.loads(body)["trials"]) if status == 200 else -1

        seen = set()
        while search.poll() is None:
            seen.add(complete())
            time.sleep(0.2)
        output, _ = search.communicate()
        assert search.returncode == 0, output
        # The dashboard keeps what it read for some seconds: how many states of the study it shows is its own affair.
        until = time.monotonic() + 180
        while complete() != 8 and time.monotonic() < until:
            time.sleep(0.5)
        assert complete() == 8
    assert "8 trials finished (8 complete, 0 pruned, 0 failed)" in output and seen - {-1}
    storage = open_storage(url)
    assert [t.state for t in optuna.load_study(storage=storage, study_name="live").trials] == [TrialState.COMPLETE] * 8
    storage.engine.dispose()


# ----------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--host", "0.0.0.0"], 2, "token"),
        (["--host", "::"], 2, "token"),
        (["--host", "evil.example"], 2, "token"),
        (["--token", ""], 2, "token"),
        (["--port", "99999"], 2, "--port"),
        (["--host", "256.0.0.1", "--token", "x"], 1, "--host 256.0.0.1 --port"),
    ],
)
def test_dashboard_wrong_usage_is_said(
    url: str,
    storage: Any,
    flags: list[str],
    code: int,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["fbsearch", "dashboard", "--storage", url, *flags])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code and named in capsys.readouterr().err


def test_dashboard_port_in_use_is_said_before_anything_is_written(
    url: str, storage: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["fbsearch", "dashboard", "--storage", url, "--port", port])
        with pytest.raises(SystemExit):
            main()
    assert f"--port {port}: Address already in use; name another" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- the guard


def through(guard: Guard, *, method: str = "GET", path: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
    said: list[Any] = []
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": "localhost:8080"}
    environ |= {f"HTTP_{name}": value for name, value in headers.items()}
    body = b"".join(guard(environ, lambda *head: said.append(head)))  # type: ignore[arg-type]
    status, answer, *_ = said[-1]
    assert len({name for name, _ in answer}) == len(answer)
    return int(status.split()[0]), dict(answer), body


def anything(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/html"), ("Access-Control-Allow-Origin", "*")])
    return [b"x"]


@pytest.mark.parametrize(
    ("listens", "host", "expected"),
    [
        *[("127.0.0.1", host, 200) for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:8080", "127.0.0.9")],
        *[
            ("127.0.0.1", host, 403)
            for host in (
                "", "evil.example", "localhost.evil.example", "localhost:x", "localhost,evil", "evil@localhost",
                "localhost/evil", "192.168.1.5", "0.0.0.0", "[::]", "[::1", "127.0.0.1:80:80", " localhost", "локал",
            )
        ],
        *[("0.0.0.0", host, 200) for host in ("192.168.1.5:8080", "[2001:db8::1]", "localhost", socket.gethostname())],
        *[("box.lan", host, expected) for host, expected in (("Box.LAN:8080", 200), ("evil.example", 403))],
    ],
)  # fmt: skip
def test_guard_lets_in_only_a_host_that_is_this_machine(listens: str, host: str, expected: int) -> None:
    token = None if is_loopback(listens) else "t"
    guard = Guard(anything, host=listens, token=token, read_only=False)
    known = {"AUTHORIZATION": f"basic {base64.b64encode(b'u:t').decode()}"}
    assert through(guard, HOST=host, **known)[0] == expected


def test_guard_for_other_machines_without_a_token_cannot_be_made() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.lan"):
        for token in (None, ""):
            with pytest.raises(AssertionError):
                Guard(anything, host=host, token=token, read_only=True)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # no browser: nobody's page can be behind it
        ({"ORIGIN": "http://localhost:8080"}, 200),
        ({"ORIGIN": "https://localhost:8080"}, 200),  # through a proxy
        ({"REFERER": "http://localhost:8080/dashboard"}, 200),
        ({"ORIGIN": "http://localhost:8081"}, 403),
        ({"ORIGIN": "http://localhost:8080.evil.example"}, 403),
        ({"ORIGIN": "http://evil.example", "REFERER": "http://localhost:8080/"}, 403),
        ({"ORIGIN": "null"}, 403),
        ({"ORIGIN": ""}, 403),
        ({"ORIGIN": "http://["}, 403),
        ({"REFERER": "http://evil.example/http://localhost:8080"}, 403),
    ],
)
def test_guard_takes_changes_only_from_its_own_pages(method: str, headers: dict[str, str], expected: int) -> None:
    guard = Guard(anything, host="127.0.0.1", token=None, read_only=False)
    assert through(guard, method=method, **headers)[0] == expected
    assert through(guard, method="GET", **headers)[0] == 200
    read_only = Guard(anything, host="127.0.0.1", token=None, read_only=True)
    assert through(read_only, method=method, **headers)[0] == 405


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Basic {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}", 200),
        (f"Basic {base64.b64encode(f':{TOKEN}'.encode()).decode()}", 200),
        (f"Basic {base64.b64encode(f'me:{TOKEN} '.encode()).decode()}", 401),
        (f"Basic {base64.b64encode(b'me:').decode()}", 401),
        (f"Bearer {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}", 401),
        ("Basic ***", 401),
        ("Basic \xe9", 401),
        ("Basic", 401),
        ("", 401),
    ],
)
def test_guard_token_is_the_password_of_any_user(authorization: str, expected: int) -> None:
    guard = Guard(anything, host="0.0.0.0", token=TOKEN, read_only=False)
    assert through(guard, AUTHORIZATION=authorization)[0] == expected


@pytest.mark.parametrize("path", ["/artifacts/1/a", "//artifacts/1/2/a"])
def test_guard_a_file_is_downloaded_and_may_do_nothing(path: str) -> None:
    _, headers, _ = through(Guard(anything, host="127.0.0.1", token=None, read_only=True), path=path)
    assert headers["Content-Disposition"] == "attachment"
    assert "sandbox" in headers["Content-Security-Policy"] and "Access-Control-Allow-Origin" not in headers


# ------------------------------------------------------------------------------------------- notes, figures, files


def attributes(study: optuna.Study) -> dict[str, Any]:
    return dict(study._storage.get_study_system_attrs(study._study_id))


def test_annotate_again_changes_nothing_and_keeps_what_a_person_wrote(storage: Any, tmp_path: Path) -> None:
    study, store = make_study(storage), ArtifactFolder(tmp_path)
    annotate(study, store)
    first = attributes(study)
    assert sum(key.endswith("note_ver") for key in first) == 11, "the study and the best ten trials"
    assert sum(key.startswith("dashboard:artifacts:") for key in first) == 20 == len(list(tmp_path.glob("*-*-*")))
    annotate(study, store)
    assert attributes(study) == first
    note = optuna_dashboard.get_note(study)
    optuna_dashboard.save_note(study, note.replace("Best:", "My best:"))
    key = next(key for key in first if key.startswith("dashboard:artifacts:"))
    study._storage.set_study_system_attr(study._study_id, key, json.dumps(None))  # as the page deletes a file
    annotate(study, store)
    assert "My best:" in optuna_dashboard.get_note(study) and attributes(study)[key] == "null"
    optuna_dashboard.save_note(study, note.replace("\n", "\r\n"))
    study.add_trial(max(study.trials, key=lambda trial: trial.value or 0))
    annotate(study, store)
    assert "trials are complete" in optuna_dashboard.get_note(study) != note, "ours is brought up to date"


def test_annotate_hangs_attention_maps_on_a_trial_that_has_them(storage: Any, tmp_path: Path) -> None:
    study, store = make_study(storage, num_trials=2), ArtifactFolder(tmp_path)
    image = {"shape": [1, 2, 2, 1], "base64": "AAAAAA=="}
    stored = {"images": image, "stages": [image | {"shape": [1, 2, 2]}], "labels": [0], "said": [1], "shares": [0.5]}
    trial = study.ask()
    for key, value in study.trials[1].user_attrs.items():
        trial.set_user_attr(key, value)
    trial.set_user_attr("attention", stored)
    study.tell(trial, 0.95)
    annotate(study, store)
    names = [json.loads(value)["filename"] for key, value in attributes(study).items() if "artifacts:" in key]
    assert sorted(names).count("attention-maps.png") == 1 and len(names) == 5
    broken = study.ask()
    for key, value in (study.trials[1].user_attrs | {"attention": {"images": 1}}).items():
        broken.set_user_attr(key, value)
    study.tell(broken, 0.96)
    annotate(study, store)
    names = [json.loads(value)["filename"] for key, value in attributes(study).items() if "artifacts:" in key]
    assert names.count("attention-maps.png") == 1, "what another version has stored is left out"


def test_annotate_shows_where_the_trained_winner_errs(
    storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    FOLDER.mkdir(parents=True)
    store_folder = tmp_path / "files"
    store_folder.mkdir()
    study, store = make_study(storage), ArtifactFolder(store_folder)
    write_summary(training(study))
    analysis = write_predictions(class_names=("cat", "dög|", "fox"))
    annotate(study, store)
    note, trial = optuna_dashboard.get_note(study), study.best_trial.number
    hardest = analysis.hardest(1).iloc[0]
    assert f"### Where trial {trial} errs" in note and f"Macro-F1 {analysis.macro_f1:.2%}" in note
    assert f"| {escape(hardest['class'])} | **{hardest['f1']:.1%}** ({100 * hardest['f1_low']:.1f} to " in note
    assert "Expected calibration error" in note and "fbsearch train" not in note.partition("### Next")[2]
    assert escape(describe_importance()) in note and "****" not in note
    files = {json.loads(value)["filename"]: key for key, value in attributes(study).items() if "artifacts:" in key}
    assert f":{study.trials[trial]._trial_id}:" in files["most-confident-mistakes.png"]
    table = (store_folder / files["classes.csv"].rpartition(":")[2]).read_text().splitlines()
    assert table[0].startswith("class,precision,") and len(table) == 4
    first = attributes(study)
    for name in ("confusion-matrix", "reliability"):
        assert any(f"plot_data:{name}:" in key for key in first), name
    annotate(study, store)
    assert attributes(study) == first


def best_shown(storage: Any, study: optuna.Study) -> list[int]:
    """The numbers of the trials that optuna-dashboard's page calls the best."""
    app = optuna_dashboard.wsgi(FeasibleBest(storage))
    guard = Guard(app, host="127.0.0.1", token=None, read_only=True)
    status, _, body = through(guard, path=f"/api/studies/{study._study_id}")
    assert status == 200
    return [trial["number"] for trial in json.loads(body)["best_trials"]]


def test_dashboard_crowns_no_trial_that_breaks_a_constraint(storage: Any) -> None:
    study = make_study(storage, num_trials=3)
    assert best_shown(storage, study) == [1]
    trial = study.ask()
    trial.set_constraint("parameters", 3.0)
    study.tell(trial, 0.99)
    assert best_shown(storage, study) == [1]
    kept = study.ask()
    kept.set_constraint("parameters", -3.0)
    study.tell(kept, 0.95)
    assert best_shown(storage, study) == [4]


def test_dashboard_crowns_the_smallest_of_equal_trials(storage: Any) -> None:
    study = make_study(storage, num_trials=3)
    trial = study.ask()
    trial.set_user_attr("num_parameters", 10)
    study.tell(trial, study.best_value)
    assert best_shown(storage, study) == [3] == [trial.number for trial in best_trials(study, 1)]


def test_dashboard_shows_the_best_of_a_study_of_other_directions(storage: Any) -> None:
    study = optuna.create_study(storage=storage, direction="minimize")
    for value in (3.0, 1.0, 2.0):
        study.tell(study.ask(), value)
    assert best_shown(storage, study) == [1]


def test_annotate_while_a_search_holds_the_study_leaves_it(storage: Any, url: str, tmp_path: Path) -> None:
    study = make_study(storage, num_trials=2)
    said: list[str] = []
    with claim_study(storage, "digits"):
        annotate_all(storage, ArtifactFolder(tmp_path), say=said.append)
    assert said.pop().startswith("study 'digits' is being searched") and attributes(study) == {}
    annotate_all(storage, ArtifactFolder(tmp_path), say=said.append)
    assert said == [] and attributes(study) != {}


def test_annotate_studies_that_have_nothing_to_show(storage: Any, url: str, tmp_path: Path) -> None:
    empty = create_study(storage, StudyConfig(name="empty"))
    failed = create_study(storage, StudyConfig(name="failed"))
    failed.ask()
    fail(failed, 0, kind="error", message="no")
    old = make_study(storage, name="old", num_trials=2)
    storage.set_trial_user_attr(old.ask()._trial_id, "config", {})
    old.tell(2, 0.999)
    optuna.create_study(storage=storage, study_name="another's")
    said: list[str] = []
    annotate_all(storage, ArtifactFolder(tmp_path), say=said.append)
    assert len(said) == 1 and said[0].startswith("study 'old' was made by another version")
    for study in (empty, failed):
        assert optuna_dashboard.get_note(study).startswith("## No trial is complete yet")


def test_study_note_says_what_each_part_is_worth(storage: Any) -> None:
    study = made_studies.make_study(storage, 60)
    frame = trials_frame(study)
    parts = [describe_part(part) for part in estimate_worth(frame).parts]
    note = study_note(study, frame, None)
    assert parts and all(name for name, _ in parts)
    for name, said in parts:
        assert f"- **{escape(name)}**: {escape(said)}" in note
    assert "fbsearch train best.yaml --seeds 3" in note


def test_study_note_shows_names_as_they_are(storage: Any) -> None:
    study = make_study(storage, name=NASTY, num_trials=1)
    assert "fbsearch export '<script>" in study_note(study, trials_frame(study), None)
    assert escape("a|b`c`<i>\n# x") == r"a\|b\`c\`\<i\> \# x"
