"""The hub is looked for once, briefly and through the environment's proxies; where it does not answer, work goes on offline."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from scripts.checkpoints import network


class Server(ThreadingHTTPServer):
    """Answers each request with its status, and keeps what was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.asked = status, []
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """What a server does with a request."""

    server: Server

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(getattr(request, "param", 200))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def closed() -> str:
    """The address of a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("server", "is_there"), [(200, True), (404, True), (503, False)], indirect=["server"])
def test_whoever_can_help_answers_even_with_a_refusal(server: Server, is_there: bool) -> None:
    assert network.answers(server.address) is is_there
    assert server.asked == [""] or server.asked == ["/"]


def test_nobody_and_one_who_keeps_silent_do_not_answer(closed: str) -> None:
    assert not network.answers(closed)
    assert not network.answers("no address")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not network.answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1)


def test_the_look_goes_through_the_proxy_of_the_environment(
    server: Server, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    assert network.answers("http://hub.invalid/")
    assert server.asked == ["http://hub.invalid/"]
    monkeypatch.setenv("http_proxy", closed)
    assert not network.answers(server.address)


def test_without_the_hub_the_processes_that_follow_work_offline_and_a_line_says_so(closed: str) -> None:
    environment = {"HF_ENDPOINT": closed}
    assert str(network.settle(environment)).startswith(f"{closed} does not answer: ")
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HF_HUB_VERBOSITY"] == "error"


def test_with_the_hub_nothing_is_turned_off(server: Server) -> None:
    environment = {"HF_ENDPOINT": server.address}
    assert network.settle(environment) is None
    assert "HF_HUB_OFFLINE" not in environment


@pytest.mark.parametrize("set_before", ["0", "1"])
def test_what_the_reader_has_set_is_kept_and_nobody_is_asked(server: Server, set_before: str) -> None:
    environment = {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": set_before, "HF_HUB_VERBOSITY": "info"}
    before = dict(environment)
    assert network.settle(environment) is None
    assert environment == before
    assert server.asked == []
