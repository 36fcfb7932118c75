"""A guard in front of a web application that has none: it checks requests and limits what a browser may do.

A WSGI middleware. It protects against:
- a page of another site that sends requests here (Origin, or Referer, must be this server's address);
- the same through a name of that site that leads to this machine, "DNS rebinding" (Host must name this machine);
- other people on the network (a token, required if the server listens on more than this machine);
- files that somebody uploaded as artifacts (they are always downloaded, never a page or a script of this origin);
- requests whose size is unknown, or too large for memory.
"""

import base64
import contextlib
import hmac
import ipaddress
import re
import socket
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SAFE_METHODS = ("GET", "HEAD")
MAX_BODY_BYTES = 64 * 2**20
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A file that is opened as a page may do nothing. The pages send a policy of their own instead.
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
# What the policy of optuna-dashboard's pages leaves open.
PAGE_POLICY = "base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
# Artifacts of another type are sent as bytes of no type: whoever made the database has chosen the type, and a browser
# takes a script for one by its type alone.
ARTIFACT_TYPES = (
    "image/", "audio/", "video/", "font/", "model/", "text/csv", "text/plain", "text/tab-separated-values",
    "application/json", "application/pdf", "application/zip",
)  # fmt: skip


def is_loopback(host: str) -> bool:
    """Return whether an address or a name in a URL is always this machine."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Guard:
    """An application behind the guard, for a server that listens on `host`.

    `token` is the password of HTTP Basic authentication, with any user name; without one, `host` must be an address of
    this machine alone. `read_only` allows GET and HEAD only.
    """

    def __init__(self, app: "WSGIApplication", *, host: str, token: str | None, read_only: bool) -> None:
        assert token or is_loopback(host), "everybody on the network could write"
        self._app, self._token, self._read_only = app, token, read_only
        self._names = {"localhost"} if is_loopback(host) else {host.lower(), "localhost", socket.gethostname().lower()}
        self._any_address = not is_loopback(host)

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        refusal = self._refuse(environ)
        if refusal is not None:
            status, text, more = refusal
            headers = {"Content-Type": "text/plain; charset=utf-8"} | HEADERS | more
            start_response(status, list(headers.items()))
            return [f"{text}\n".encode()]
        # optuna-dashboard fails without this header.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
        is_artifact = environ.get("PATH_INFO", "").lstrip("/").startswith("artifacts/")

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, _harden(headers, is_artifact=is_artifact), exc_info)

        return self._app(environ, start)

    def _refuse(self, environ: "WSGIEnvironment") -> tuple[str, str, dict[str, str]] | None:
        """Return status, text and headers if the request is refused, else None."""
        if not self._is_ours(environ.get("HTTP_HOST", "")):
            return "403 Forbidden", "This is not the address of this server: its Host is another's.", {}
        wrong_size = _check_size(environ)
        if wrong_size is not None:
            return *wrong_size, {}
        if self._token is not None and not _has_token(environ.get("HTTP_AUTHORIZATION", ""), self._token):
            ask = {"WWW-Authenticate": 'Basic realm="fbsearch: any user name, the token as password", charset="UTF-8"'}
            return "401 Unauthorized", "A token is needed: any user name, the token as password.", ask
        if environ["REQUEST_METHOD"] in SAFE_METHODS:
            return None
        if self._read_only:
            allowed = {"Allow": ", ".join(SAFE_METHODS)}
            return "405 Method Not Allowed", "This dashboard is read-only: nothing can be changed here.", allowed
        if not _is_same_origin(environ):
            return "403 Forbidden", "This request comes from another site's page.", {}
        return None

    def _is_ours(self, host: str) -> bool:
        """Return whether a Host header names this machine. Any port is allowed: a tunnel has a port of its own."""
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:/?#@\[\]\s]+))(?::\d+)?", host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower()
        # DNS rebinding needs a name; an address always leads to the same machine.
        return name in self._names or is_loopback(name) or (self._any_address and _address(name) is not None)


def _check_size(environ: "WSGIEnvironment") -> tuple[str, str] | None:
    """Return status and text if the size of the request's body is unknown or too large, else None."""
    size = environ.get("CONTENT_LENGTH") or "0"
    if "HTTP_TRANSFER_ENCODING" in environ:
        return "411 Length Required", "The request must have a Content-Length."
    if not re.fullmatch("[0-9]{1,18}", size):
        return "400 Bad Request", "The Content-Length is no number."
    if int(size) > MAX_BODY_BYTES:
        return "413 Content Too Large", f"The request is over {MAX_BODY_BYTES:,} bytes."
    return None


def _has_token(authorization: str, token: str) -> bool:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        _, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except ValueError:  # not base64, or not even ASCII
        return False
    return hmac.compare_digest(password, token.encode("utf-8", "surrogateescape"))


def _is_same_origin(environ: "WSGIEnvironment") -> bool:
    """Return whether the page that sends the request is ours. Browsers always say so; other clients need not."""
    source = environ.get("HTTP_ORIGIN", environ.get("HTTP_REFERER"))
    if source is None:
        return True
    try:
        return urllib.parse.urlsplit(str(source)).netloc.lower() == str(environ["HTTP_HOST"]).lower()
    except ValueError:
        return False


def _harden(headers: list[tuple[str, str]], *, is_artifact: bool) -> list[tuple[str, str]]:
    there, kept = {name.lower() for name, _ in headers}, []
    for name, value in headers:
        match name.lower():
            case "access-control-allow-origin":
                continue  # optuna-dashboard lets all sites read artifacts
            case "content-security-policy":
                kept.append((name, f"{value};{PAGE_POLICY}"))
            case "content-type" if is_artifact and not value.lower().startswith(ARTIFACT_TYPES):
                kept.append((name, "application/octet-stream"))
            case _:
                kept.append((name, value))
    more = HEADERS | ({"Content-Disposition": "attachment"} if is_artifact else {})
    return kept + [(name, value) for name, value in more.items() if name.lower() not in there]


def add_style(app: "WSGIApplication", style: bytes, *, path: str) -> "WSGIApplication":
    """Return an application that adds CSS to the HTML pages of `app` whose path begins with `path`."""

    def styled(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or not environ["PATH_INFO"].startswith(path):
            return app(environ, start_response)
        for condition in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"):
            environ.pop(condition, None)  # the page must come whole
        heads: list[Any] = []
        answer: Any = app(environ, lambda *head: heads.append(head))  # type: ignore[arg-type]
        with contextlib.closing(answer) if hasattr(answer, "close") else contextlib.nullcontext():
            page = b"".join(answer).replace(b"</head>", b"<style>\n" + style + b"</style>\n</head>")
        status, headers, *more = heads[-1]
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*kept, ("Content-Length", str(len(page)))], *more)
        return [page]

    return styled
