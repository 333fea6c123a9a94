"""Adapter: /healthz, /readyz and /metrics over plain HTTP.

A few calls at once, each with one deadline for all of its request: whoever holds a connection open keeps
probes waiting for seconds, not for ever. There is nothing to change by it, and nothing to log in for.
"""

import io
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any, NamedTuple, cast

from structlog.typing import FilteringBoundLogger

from vf_manager.errors import InvalidInput, KernelError

_AT_ONCE = 8
_TIMEOUT_S = 5.0


class Page(NamedTuple):
    """What a path answers. `text` has no secrets: it is for whoever can reach the port."""

    status: HTTPStatus
    text: str
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]  # by path


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`127.0.0.1:9808`, `[::1]:9808`; port 0 is any that is free. Raises InvalidInput."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address, number = ip_address(bare), int(port)
    except ValueError:
        address, number = None, -1
    if address is None or (address.version == 6) != (bare != host) or not 0 <= number <= 65535:
        raise InvalidInput("--metrics-address", text, "ADDRESS:PORT, as in 127.0.0.1:9808 or [::1]:9808")
    return Address(bare, number)


class HttpEndpoint:
    """Listens from the start; `serve` in a thread, then `stop` from another."""

    def __init__(self, address: Address, pages: Pages, log: FilteringBoundLogger) -> None:
        """Raises KernelError."""
        try:
            self._server = _Server(address, pages, log)
        except OSError as e:
            hint = "another --metrics-address may be free"
            raise KernelError(f"serve metrics on {address}", e.errno or 0, hint) from e
        self._stopped = threading.Event()

    @property
    def address(self) -> Address:
        """With the port that was free, if 0 was asked for."""
        return self._server.bound_to()

    def serve(self) -> None:
        """Answer until `stop`."""
        with self._server:
            while not self._stopped.is_set():
                self._server.handle_request()

    def stop(self) -> None:
        """Take no more calls. Ends a wait of `serve`: a listener that is shut down is readable."""
        self._stopped.set()
        self._server.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """If `serve` never came to do it. Once more is no error."""
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: Address, pages: Pages, log: FilteringBoundLogger) -> None:
        self._log = log
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.pages = pages
        self._slots = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__((address.host, address.port), _Handler)

    def bound_to(self) -> Address:
        host, port, *_ = self.socket.getsockname()
        return Address(host, port)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The request boundary. A client that went away is no event."""
        if not isinstance(sys.exc_info()[1], OSError):
            self._log.exception("unexpected error in an http call", peer=client_address[0])


class _InTime(io.RawIOBase):
    """What comes by a socket until a deadline, and then TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + _TIMEOUT_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(self._deadline - time.monotonic(), 0.001))
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server_version = "sriov-agent"
    sys_version = ""
    timeout = _TIMEOUT_S  # of each write

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_InTime(self.connection))

    def do_GET(self) -> None:
        page = self._page()
        body = page.text.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def _page(self) -> Page:
        pages = cast(_Server, self.server).pages
        page = pages.get(self.path.partition("?")[0])
        if page is None:
            return Page(HTTPStatus.NOT_FOUND, f"there are {', '.join(pages)}\n")
        return page()

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds."""
