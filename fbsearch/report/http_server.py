"""The dashboard's server: a thread for each connection, with limits of their number and of the time of a request.

Python's own server waits for ever for a client that sends its request byte by byte, and takes any number of them.
"""

import io
import socket
import socketserver
import sys
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

# A page loads over six connections at a time.
MAX_CONNECTIONS = 64
HEADER_SECONDS, BODY_SECONDS, ANSWER_SECONDS = 10, 60, 300
BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


class _Incoming(io.RawIOBase):
    """The bytes that a client sends. TimeoutError once `seconds` are over, however many of them have come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._until = connection, 0.0

    def allow(self, seconds: float) -> None:
        """Give the client `seconds` from now."""
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(ANSWER_SECONDS)


class _Handler(WSGIRequestHandler):
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self._incoming = _Incoming(self.connection)
        self._incoming.allow(self.server.header_seconds)
        self.rfile.close()
        self.rfile = io.BufferedReader(self._incoming)

    def parse_request(self) -> bool:
        is_valid = super().parse_request()
        self._incoming.allow(self.server.body_seconds)
        return is_valid

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(socketserver.ThreadingMixIn, WSGIServer):
    """A server of at most `connections` clients at a time; more of them are told to come again."""

    daemon_threads = True  # Ctrl-C must not wait for a browser that keeps its connections open

    def __init__(
        self, address: tuple[str, int], *, connections: int, header_seconds: float, body_seconds: float
    ) -> None:
        self.header_seconds, self.body_seconds = header_seconds, body_seconds
        self._free = threading.BoundedSemaphore(connections)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            request.settimeout(1)
            request.sendall(BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread that would do it
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that is slow, or goes away, is no fault of ours.
        if not isinstance(sys.exception(), (TimeoutError, ConnectionError)):
            super().handle_error(request, client_address)


def listen(
    *,
    host: str,
    port: int,
    connections: int = MAX_CONNECTIONS,
    header_seconds: float = HEADER_SECONDS,
    body_seconds: float = BODY_SECONDS,
) -> Server:
    """Return a listening server; it answers after `set_app`. Raises OSError."""
    return Server((host, port), connections=connections, header_seconds=header_seconds, body_seconds=body_seconds)
