"""Proxy and certificate variables of the shell, right or wrong: what they mean for one address."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from synth_service.client import Client
from synth_service.client.environment import route_to

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
REMOTE = "http://dfkd.example:8000"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def proxy_to(url: str) -> str | None:
    proxy = route_to(url).proxy
    return str(proxy.url) if proxy else None


SHELLS = [
    {"ALL_PROXY": "socks5://127.0.0.1:9"},
    {"NO_PROXY": "localhost,::1,fd00::/8"},
    {"NO_PROXY": "localhost,[::1]"},
    {"SSL_CERT_FILE": "/nonexistent/cacert.pem"},
    {"SSL_CERT_DIR": "/nonexistent"},
    {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
    {"ALL_PROXY": "no proxy at all", "HTTP_PROXY": "http://["},
]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_service_on_loopback_is_reached_whatever_the_shell_says(service: str, shell: dict[str, str]) -> None:
    command = [sys.executable, "-c", "from synth_service.cli import main; main()", "jobs", "--url", service, "--json"]
    done = subprocess.run(command, env={**os.environ, **shell}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "[::1]", "api.localhost"])
def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert proxy_to(f"http://{host}:8000") is None
    assert proxy_to(REMOTE) == "http://proxy:3128"


@pytest.mark.parametrize(
    ("exceptions", "is_excepted"),
    [
        ("*", True),
        ("dfkd.example", True),
        (".example", True),
        ("*.example", True),
        ("kd.example", False),
        ("dfkd.example:8000", True),
        ("dfkd.example:8001", False),
        ("fd00::/8, ::1, [::1]:80,,", False),
    ],
)
def test_exceptions_are_hosts_domains_and_ports(
    monkeypatch: pytest.MonkeyPatch, exceptions: str, is_excepted: bool
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert proxy_to(REMOTE) == (None if is_excepted else "http://proxy:3128")


def test_exceptions_are_networks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,fd00::/8")
    assert proxy_to("http://10.1.2.3:8000") is None
    assert proxy_to("http://[fd12::1]:8000") is None
    assert proxy_to("http://11.1.2.3:8000") == "http://proxy:3128"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ALL_PROXY", "socks5://proxy:9"), ("HTTPS_PROXY", "http://user:secret@["), ("SSL_CERT_FILE", "/nonexistent/ca")],
)
def test_a_variable_that_cannot_be_used_is_named_and_its_password_is_not(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setattr("synth_service.client.environment._speaks_socks", lambda: False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as refused:
        Client("https://dfkd.example")
    assert "secret" not in str(refused.value)


def test_a_certificate_file_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with pytest.raises(ValueError, match="SSL_CERT_FILE"):
        route_to("https://dfkd.example")


def test_an_encrypted_address_is_checked_and_goes_through_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    route = route_to("https://dfkd.example")
    assert str(route.proxy.url if route.proxy else None) == "http://proxy:3128"
    assert route.certificates is not False


def test_a_proxy_that_is_asked_gets_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.settimeout(20)
        code = f"from synth_service.client import Client; Client({REMOTE!r}, retries=0).jobs.list()"
        asking = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        try:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1000).startswith(f"GET {REMOTE}/jobs".encode())
        finally:
            asking.kill()
            asking.wait()
