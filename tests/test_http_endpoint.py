"""Plain HTTP for probes and scrapes: what is asked is answered, and who is slow or many holds up nobody."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from node_agent import http_endpoint
from node_agent.http_endpoint import Address, HttpEndpoint, Page, parse_address
from tests.agent_node import DEADLINE_S, eventually
from tests.cni_world import quiet_log
from vf_manager.errors import InvalidInput, KernelError

ANY = Address("127.0.0.1", 0)


@contextlib.contextmanager
def serving(address: Address = ANY) -> Iterator[HttpEndpoint]:
    pages = {"/a": lambda: Page(HTTPStatus.OK, "yes\n"), "/broken": lambda: Page(HTTPStatus(1 // 0), "")}
    endpoint = HttpEndpoint(address, pages, quiet_log())
    thread = threading.Thread(target=endpoint.serve)
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def ask(address: Address, method: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=DEADLINE_S)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_pages() -> None:
    with serving() as endpoint:
        assert ask(endpoint.address, "GET", "/a") == (200, "yes\n")
        assert ask(endpoint.address, "GET", "/a?since=1") == (200, "yes\n")
        assert ask(endpoint.address, "HEAD", "/a") == (200, "")
        assert ask(endpoint.address, "GET", "/etc/passwd") == (404, "there are /a, /broken\n")
        assert ask(endpoint.address, "POST", "/a")[0] == 501


def test_a_page_that_fails_is_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as endpoint:
        with pytest.raises(http.client.RemoteDisconnected):
            ask(endpoint.address, "GET", "/broken")
        assert ask(endpoint.address, "GET", "/a") == (200, "yes\n")
    said = capsys.readouterr().out
    assert "unexpected error in an http call" in said
    assert "ZeroDivisionError" in said


def test_who_is_slow_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one deadline for the whole request: a byte now and then does not put it off."""
    monkeypatch.setattr(http_endpoint, "_TIMEOUT_S", 0.2)
    with serving() as endpoint, socket.create_connection(endpoint.address, DEADLINE_S) as slow:
        slow.sendall(b"GET /a HTTP/1.0\r\n")
        with contextlib.suppress(ConnectionError):
            while not (answer := _drip(slow)):
                pass
            assert answer == "end"


def _drip(connection: socket.socket) -> str:
    """One byte more, and whether the other end still waits."""
    connection.settimeout(0.02)
    connection.sendall(b"x")
    try:
        return connection.recv(1).decode() or "end"
    except TimeoutError:
        return ""


def test_more_than_can_be_served_are_hung_up_on() -> None:
    with serving() as endpoint, contextlib.ExitStack() as idle:
        for _ in range(8):
            idle.enter_context(socket.create_connection(endpoint.address, DEADLINE_S))
        one_more = idle.enter_context(socket.create_connection(endpoint.address, DEADLINE_S))
        assert one_more.recv(1) == b""
        idle.close()
        eventually(lambda: _is_served(endpoint.address), "there is room again")


def _is_served(address: Address) -> bool:
    try:
        return ask(address, "GET", "/a")[0] == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def test_a_port_that_is_taken() -> None:
    with serving() as endpoint:
        with pytest.raises(KernelError) as caught:
            HttpEndpoint(endpoint.address, {}, quiet_log())
        assert str(caught.value) == (
            f"serve metrics on {endpoint.address}: EADDRINUSE (Address already in use);"
            " another --metrics-address may be free"
        )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9808", Address("127.0.0.1", 9808)),
        ("[::]:1", Address("::", 1)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "9808", ":9808", "localhost:9808", "::1:9808", "[1.2.3.4]:1", "1.2.3.4:65536"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^--metrics-address: "):
        parse_address(text)
