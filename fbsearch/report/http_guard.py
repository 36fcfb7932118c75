"""A guard in front of a web application that has none: who may ask for what, and what a browser may do with an answer.

A WSGI middleware and the server it runs in; knows nothing of studies. Against whom:
- a page of another site that sends requests here (Origin, or Referer, must be the address that was asked);
- the same through a name of its own that it lets point here, "DNS rebinding" (Host must be a name of this machine);
- other people on the network (a token, which is required for every address but this machine's own);
- a file that somebody uploaded as an artifact (never shown as a page of this origin, always downloaded).
"""

import base64
import binascii
import hmac
import ipaddress
import re
import socket
import socketserver
import urllib.parse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # For all answers but the pages, which say what they need themselves: a file, opened as a page, may do nothing.
    "Content-Security-Policy": "default-src 'none'; sandbox",
}


def is_loopback(host: str) -> bool:
    """Whether an address or a name in a URL can only be this machine itself."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Guard:
    """The application behind the guard, for a server that listens on `host`.

    With `token`, HTTP Basic authentication with it as the password and any user name. With `read_only`, no request
    but GET and HEAD. Without a token `host` must be this machine's own.
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
        # optuna-dashboard takes this header for granted and fails without it.
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")
        is_artifact = environ.get("PATH_INFO", "").lstrip("/").startswith("artifacts/")

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, _harden(headers, is_artifact=is_artifact), exc_info)

        return self._app(environ, start)

    def _refuse(self, environ: "WSGIEnvironment") -> tuple[str, str, dict[str, str]] | None:
        """The answer to a request that is not let through: status, text, headers."""
        if not self._is_ours(environ.get("HTTP_HOST", "")):
            return "403 Forbidden", "This is not the address of this server: its Host is another's.", {}
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
        """Whether a Host header names this machine. The port may be another's: a tunnel has its own."""
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:/?#@\[\]\s]+))(?::\d+)?", host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower()
        # An address cannot be rebound; only a name can.
        return name in self._names or is_loopback(name) or (self._any_address and _address(name) is not None)


def _has_token(authorization: str, token: str) -> bool:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        _, _, password = base64.b64decode(credentials, validate=True).partition(b":")
    except binascii.Error:
        return False
    return hmac.compare_digest(password, token.encode())


def _is_same_origin(environ: "WSGIEnvironment") -> bool:
    """Whether the page that sends the request came from here. A browser always says so; what is none need not."""
    source = environ.get("HTTP_ORIGIN", environ.get("HTTP_REFERER"))
    if source is None:
        return True
    try:
        return urllib.parse.urlsplit(str(source)).netloc.lower() == str(environ["HTTP_HOST"]).lower()
    except ValueError:
        return False


def _harden(headers: list[tuple[str, str]], *, is_artifact: bool) -> list[tuple[str, str]]:
    # optuna-dashboard lets every site read artifacts.
    kept = [(name, value) for name, value in headers if name.lower() != "access-control-allow-origin"]
    there = {name.lower() for name, _ in kept}
    more = HEADERS | ({"Content-Disposition": "attachment"} if is_artifact else {})
    return kept + [(name, value) for name, value in more.items() if name.lower() not in there]


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser keeps connections open; Ctrl-C must not wait for it

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def listen(*, host: str, port: int) -> WSGIServer:
    """A server with a thread for each request, listening; it answers once it has an application. OSError if not."""
    return _Server((host, port), _QuietHandler)
