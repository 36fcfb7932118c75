"""The dashboard attacked through real sockets: crooked requests, slow clients, many of them, a stranger's files."""

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import optuna_dashboard
import pytest
from chromium import CHROMIUM, PATIENCE
from made_studies import make_study
from optuna.storages import RDBStorage

from fbsearch.report.dashboard import open_dashboard
from fbsearch.report.http_server import listen
from fbsearch.study.database import open_storage

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

ID = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"
TOKEN = "geheim"
HEAD = f"Host: localhost\r\nAuthorization: Basic {base64.b64encode(b'me:' + TOKEN.encode()).decode()}\r\n"
JSON = f"{HEAD}Content-Type: application/json\r\n"
MANY = "".join(f"X{number}: y\r\n" for number in range(200))
SCRIPT = f"/artifacts/1/{ID}"
NOTE = f"""
<script>top.ran = 1</script> <img src=x onerror="top.ran = 2"> <svg onload="top.ran = 3"></svg>
<iframe srcdoc="<script src='{SCRIPT}'></script>"></iframe> <script src="{SCRIPT}"></script>

[link](javascript:top.ran=4) <base href="http://evil.example/"> <meta http-equiv="refresh" content="0;url=/evil">
"""


@contextlib.contextmanager
def serving(app: "WSGIApplication", **limits: Any) -> Iterator[tuple[str, int]]:
    """Serve an application on a free port, in a thread."""
    server = listen(host="127.0.0.1", port=0, **limits)
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def strangers_study(folder: Path) -> RDBStorage:
    """A database of somebody else with one study, its note and a file of it, which is a script by its type."""
    storage = open_storage(f"sqlite:///{folder / 's.db'}", create=True)
    study = make_study(storage, 6)
    meta = {"artifact_id": ID, "filename": "x.js", "mimetype": "text/javascript", "encoding": None}
    study._storage.set_study_system_attr(study._study_id, f"artifacts:{ID}", json.dumps(meta))
    optuna_dashboard.save_note(study, NOTE)
    (folder / "s.artifacts").mkdir()
    (folder / "s.artifacts" / ID).write_text("top.ran = 5")
    return storage


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[WSGIApplication, Path]]":
    """The dashboard of a stranger's database, and its folder."""
    folder = tmp_path_factory.mktemp("stranger")
    storage = strangers_study(folder)
    url = f"sqlite:///{folder / 's.db'}"
    options: dict[str, Any] = {"artifacts": None, "host": "127.0.0.1", "read_only": False, "say": print}
    yield open_dashboard(storage, url, token=TOKEN, **options), folder
    storage.engine.dispose()


@pytest.fixture(scope="module")
def address(dashboard: "tuple[WSGIApplication, Path]") -> Iterator[tuple[str, int]]:
    with serving(dashboard[0]) as found:
        yield found


def send(address: tuple[str, int], request: str) -> tuple[int, str]:
    """Send a request as it stands, and return the status and all of the answer."""
    with socket.create_connection(address, timeout=120) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return int(answer.split()[1]), answer.decode("latin-1")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (f"GET /api/studies HTTP/1.1\r\n{HEAD}\r\n", 200),
        ("GET /api/studies HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic \xe9\r\n\r\n", 401),
        ("GET /api/studies HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic \xc3\xa9\r\n\r\n", 401),
        (f"GET /api/studies HTTP/1.1\r\nHost: evil.example\r\n{HEAD}\r\n", 403),
        (f"GET /api/studies HTTP/1.1\r\n{HEAD}Host: evil.example\r\n\r\n", 403),
        (f"PUT /api/studies/1/note HTTP/1.1\r\n{JSON}Content-Length: -1\r\n\r\n{{}}", 400),
        (f"PUT /api/studies/1/note HTTP/1.1\r\n{JSON}Content-Length: x\r\n\r\n{{}}", 400),
        (f"PUT /api/studies/1/note HTTP/1.1\r\n{JSON}Content-Length: {10**11}\r\n\r\n{{}}", 413),
        (f"PUT /api/studies/1/note HTTP/1.1\r\n{JSON}Content-Length: {10**99}\r\n\r\n{{}}", 400),
        (f"PUT /api/studies/1/note HTTP/1.1\r\n{JSON}Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFF\r\n{{}}", 411),
        (f"GET /static/%2e%2e/_app.py HTTP/1.1\r\n{HEAD}\r\n", 403),
        (f"GET /artifacts/1/..%2f..%2fs.db HTTP/1.1\r\n{HEAD}\r\n", 404),
        (f"GET http://evil.example/api/studies HTTP/1.1\r\n{HEAD}\r\n", 404),
        (f"GET /{'a' * 70000} HTTP/1.1\r\n{HEAD}\r\n", 414),
        (f"GET / HTTP/1.1\r\n{HEAD}{MANY}\r\n", 431),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_crooked_request_is_refused_and_the_server_goes_on(
    address: tuple[str, int], request_: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert send(address, request_)[0] == status
    assert send(address, f"GET /api/meta HTTP/1.1\r\n{HEAD}\r\n")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_method_cannot_be_changed_by_a_header_nor_the_protocol_to_a_websocket(address: tuple[str, int]) -> None:
    override = "".join(
        f"{name}: DELETE\r\n" for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")
    )
    assert send(address, f"GET /api/studies/1?_method=DELETE HTTP/1.1\r\n{HEAD}{override}\r\n")[0] == 200
    assert send(address, f"POST /api/studies/1 HTTP/1.1\r\n{JSON}{override}Content-Length: 2\r\n\r\n{{}}")[0] == 405
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"
    status, answer = send(address, f"GET /api/studies HTTP/1.1\r\n{HEAD}{upgrade}Origin: http://evil.example\r\n\r\n")
    assert status == 200 and '"digits"' in answer and "Upgrade" not in answer, "plain HTTP, and the study is there"


# Slow clients, and many.


def hello(_environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def read_body(environ: Any, start_response: Any) -> list[bytes]:
    environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return hello(environ, start_response)


def drip(connection: socket.socket) -> bytes:
    """Send a byte again and again, until the server ends the connection; return what it answers."""
    connection.settimeout(0.02)
    answer = b""
    while True:
        try:
            connection.sendall(b"x")
            answer += (part := connection.recv(4096))
        except TimeoutError:
            continue
        except ConnectionError:
            return answer
        if not part:
            return answer


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n"])
def test_a_slow_client_is_not_waited_for(begin: bytes) -> None:
    limits = {"header_seconds": 0.3, "body_seconds": 0.3}
    with serving(read_body, **limits) as address, socket.create_connection(address, timeout=120) as connection:
        connection.sendall(begin)
        assert b"hello" not in drip(connection)


def test_more_clients_than_allowed_are_told_to_come_again() -> None:
    request = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(hello, connections=2) as address:
        with socket.create_connection(address), socket.create_connection(address):
            while (found := send(address, request)[0]) != 503:
                assert found == 200, "the server has not taken both connections yet"
        while send(address, request)[0] != 200:
            pass  # it has not noticed yet that they are gone


# What a stranger has put into the database and beside it.


def test_a_file_of_a_script_type_is_no_script(address: tuple[str, int]) -> None:
    status, answer = send(address, f"GET {SCRIPT} HTTP/1.1\r\n{HEAD}\r\n")
    assert status == 200 and "Content-Type: application/octet-stream\r\n" in answer and "javascript" not in answer
    assert "X-Content-Type-Options: nosniff\r\n" in answer and "Content-Disposition: attachment\r\n" in answer


def test_the_page_has_a_policy_without_holes(address: tuple[str, int]) -> None:
    _, answer = send(address, f"GET /dashboard HTTP/1.1\r\n{HEAD}\r\n")
    policy = next(line for line in answer.splitlines() if line.startswith("Content-Security-Policy: "))
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.partition(": ")[2].split(";")}
    assert rules["default-src"] == rules["connect-src"] == rules["form-action"] == ["'self'"]
    assert rules["object-src"] == rules["base-uri"] == ["'none'"]
    assert "'unsafe-inline'" not in rules["script-src"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_note_and_a_file_run_no_script_in_a_browser(address: tuple[str, int]) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(http_credentials={"username": "", "password": TOKEN}).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://{address[0]}:{address[1]}/dashboard/studies/1/note")
        page.get_by_text("top.ran = 1").wait_for()
        loaded = """src => new Promise(done => {
            const script = document.createElement('script')
            script.onload = () => done('loaded'); script.onerror = () => done('refused')
            script.src = src; document.head.append(script)
        })"""
        assert page.evaluate(loaded, SCRIPT) == "refused"
        assert page.evaluate("window.ran") is None and page.url.endswith("/note")
        browser.close()


def test_a_link_in_the_folder_of_files_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage, secret = strangers_study(tmp_path), tmp_path / "secret"
    url = f"sqlite:///{tmp_path / 's.db'}"
    options: dict[str, Any] = {"artifacts": None, "host": "127.0.0.1", "token": TOKEN, "read_only": False}
    open_dashboard(storage, url, **options, say=print)
    secret.write_text("mine")
    files = list((tmp_path / "s.artifacts").iterdir())
    assert len(files) > 1, "masks and curves of the best trials"
    for file in files:  # their names are no secret: they come from the study alone
        file.unlink()
        file.symlink_to(secret)
    app = open_dashboard(storage, url, **options, say=print)
    assert secret.read_text() == "mine" and "is damaged" in capsys.readouterr().out
    with serving(app) as address:
        assert "mine" not in send(address, f"GET {SCRIPT} HTTP/1.1\r\n{HEAD}\r\n")[1]
    storage.engine.dispose()


def test_deleting_a_study_deletes_no_file_elsewhere(tmp_path: Path) -> None:
    storage = strangers_study(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").write_text("mine")
    (tmp_path / "s.artifacts" / "sub").symlink_to(tmp_path / "home")
    study = optuna.load_study(storage=storage, study_name="digits")
    meta = {"artifact_id": "sub/file", "filename": "x", "mimetype": "text/plain", "encoding": None}
    study._storage.set_study_system_attr(study._study_id, "artifacts:b", json.dumps(meta))
    options: dict[str, Any] = {"artifacts": None, "host": "127.0.0.1", "token": TOKEN, "read_only": False}
    app = open_dashboard(storage, f"sqlite:///{tmp_path / 's.db'}", **options, say=print)
    with serving(app) as address:
        send(address, f"DELETE /api/studies/1 HTTP/1.1\r\n{JSON}Content-Length: 2\r\n\r\n{{}}")
    assert (tmp_path / "home" / "file").read_text() == "mine"
    storage.engine.dispose()
