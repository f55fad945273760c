"""Fetching against a server on this machine: what arrives, what is refused, and that nothing waits for ever."""

from __future__ import annotations

import http.server
import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitral.base import fetch as fetching
from vitral.base.fetch import fetch
from vitral.base.image import read_picture
from vitral.errors import FetchError, PictureError, UsageError

BODY = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """One path for each way a server can behave."""

    def do_GET(self) -> None:
        getattr(self, "at_" + self.path.split("?")[0].split("/")[1], self.at_missing)()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def at_body(self) -> None:
        self.answer(200, BODY, Content_Length=str(len(BODY)))

    def at_unannounced(self) -> None:
        self.answer(200, BODY)

    def at_chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:1000], BODY[1000:]))
        self.answer(200, pieces + b"0\r\n\r\n", Transfer_Encoding="chunked")

    def at_path(self) -> None:
        self.answer(200, f"{self.path} {self.headers['Host']}".encode())

    def at_missing(self) -> None:
        self.answer(404)

    def at_short(self) -> None:
        self.answer(200, BODY, Content_Length=str(len(BODY) + 5))

    def at_announced_large(self) -> None:
        self.answer(200, BODY, Content_Length=str(10**12))

    def at_loop(self) -> None:
        self.answer(302, Location="/loop")

    def at_hop(self) -> None:
        self.answer(301, Location="body")

    def at_inwards(self) -> None:
        self.answer(302, Location=f"http://127.0.0.2:{self.server.server_port}/body")  # type: ignore[attr-defined]

    def at_file(self) -> None:
        self.answer(302, Location="file:///etc/hostname")

    def at_slow_body(self) -> None:
        self.answer(200, Content_Length="1000")
        self.trickle()

    def at_slow_headers(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        self.trickle()

    def trickle(self) -> None:
        try:
            for _ in range(100):
                self.wfile.write(b".")
                time.sleep(0.05)
        except OSError:
            pass

    def at_silence(self) -> None:
        time.sleep(1.5)

    def at_nonsense(self) -> None:
        self.wfile.write(b"\x00\x01 nothing like HTTP\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(context: ssl.SSLContext | None = None) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    yield from serve()


@pytest.fixture
def base(server: http.server.ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def only_this_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 counts as public, so that what else is refused can be seen; everything else is judged as ever."""
    judge = fetching._is_public
    monkeypatch.setattr(fetching, "_is_public", lambda address: address == "127.0.0.1" or judge(address))


@pytest.mark.parametrize("path", ["body", "unannounced", "chunked", "hop"])
def test_a_body_arrives_whole(base: str, path: str) -> None:
    assert fetch(f"{base}/{path}", allow_private=True) == BODY


def test_the_server_is_asked_for_what_the_address_says(base: str) -> None:
    host = base.removeprefix("http://")
    answer = fetch(f"{base}/path/ä b?size=1%20x&q=ü#part", allow_private=True)
    assert answer.decode() == f"/path/%C3%A4%20b?size=1%20x&q=%C3%BC {host}"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "answered 404"),
        ("short", "ended 5 bytes too early"),
        ("loop", "redirects more than 5 times"),
        ("file", "Only http and https"),
        ("nonsense", "The transfer failed"),
        ("announced_large", "larger than 67,108,864 bytes"),
    ],
)
def test_what_is_wrong_is_said(base: str, path: str, reason: str) -> None:
    with pytest.raises(FetchError, match=reason) as failure:
        fetch(f"{base}/{path}", allow_private=True)
    assert failure.value.name == f"{base}/{path}"


@pytest.mark.parametrize("path", ["body", "unannounced", "chunked"])
def test_a_body_over_the_limit_is_refused(base: str, path: str) -> None:
    assert len(fetch(f"{base}/{path}", allow_private=True, max_bytes=len(BODY))) == len(BODY)
    with pytest.raises(FetchError, match=r"larger than 10,239 bytes"):
        fetch(f"{base}/{path}", allow_private=True, max_bytes=len(BODY) - 1)


@pytest.mark.parametrize("path", ["slow_body", "slow_headers", "silence"])
def test_the_time_limit_holds_for_the_whole_transfer(base: str, path: str) -> None:
    begun = time.monotonic()
    with pytest.raises(FetchError, match=r"within 0\.4 seconds"):
        fetch(f"{base}/{path}", allow_private=True, timeout=0.4)
    assert 0.3 < time.monotonic() - begun < 1.2


def test_a_resolver_that_does_not_answer_does_not_hold_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.5))
    begun = time.monotonic()
    with pytest.raises(FetchError, match=r"within 0\.2 seconds"):
        fetch("http://example.org/", timeout=0.2)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/a.png", "file:///etc/hostname", "gopher://example.org", "//example.org/a.png", "a.png", ""],
)
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(FetchError, match="Only http and https"):
        fetch(url)


@pytest.mark.parametrize(
    "url", ["http://", "http:///a.png", "http://[::1", "http://a:99999/", "http://a:b/", f"http://{'a' * 70}.org/"]
)
def test_broken_addresses_are_refused(url: str) -> None:
    with pytest.raises(FetchError):
        fetch(url)


def test_credentials_are_neither_sent_nor_repeated(base: str) -> None:
    with pytest.raises(FetchError, match="user name or password") as failure:
        fetch(base.replace("//", "//me:secret@"), allow_private=True)
    assert "secret" not in str(failure.value)


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match="The transfer failed"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/", allow_private=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2002:7f00:1::]",
        "[64:ff9b::7f00:1]", "[2001:db8::1]",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(FetchError, match="not a public address"):
        fetch(f"http://{host}/", timeout=2.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "::1", "fe80::1%1", "::ffff:10.0.0.1"])
def test_private_addresses_are_known_by_sight(host: str) -> None:
    assert not fetching._is_public(host)


@pytest.mark.parametrize("host", ["93.184.215.14", "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_public_addresses_are_known_by_sight(host: str) -> None:
    assert ipaddress.ip_address(host).is_global
    assert fetching._is_public(host)


@pytest.mark.usefixtures("only_this_server")
def test_a_redirect_inwards_is_refused(base: str) -> None:
    assert fetch(f"{base}/hop") == BODY
    with pytest.raises(FetchError, match=r"127\.0\.0\.2, which is not a public address"):
        fetch(f"{base}/inwards")


@pytest.mark.usefixtures("only_this_server")
def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    answer = [(*stream, ("127.0.0.1", 80)), (*stream, ("10.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    with pytest.raises(FetchError, match=r"10\.0\.0\.1, which is not a public address"):
        fetch("http://two-faced.example/")


@pytest.mark.usefixtures("only_this_server")
def test_the_connection_goes_to_the_address_that_was_checked(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def rebinding(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = f"http://rebinding.example:{server.server_port}/path"
    assert fetch(url).decode().endswith(f"rebinding.example:{server.server_port}")
    assert asked == ["rebinding.example"]


def test_tls_is_checked_against_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for server in serve(context):
        with pytest.raises(FetchError, match=r"(?i)certificate"):
            fetch(f"https://localhost:{server.server_port}/body", allow_private=True)
        monkeypatch.setattr(fetching, "_tls", lambda: ssl.create_default_context(cafile=str(certificate)))
        assert fetch(f"https://localhost:{server.server_port}/body", allow_private=True) == BODY
        with pytest.raises(FetchError, match=r"within 0\.4 seconds"):
            fetch(f"https://localhost:{server.server_port}/slow_body", allow_private=True, timeout=0.4)
        with pytest.raises(FetchError, match=r"(?i)certificate"):
            fetch(f"https://127.0.0.1:{server.server_port}/body", allow_private=True)


@pytest.mark.parametrize("option", [{"timeout": 0.0}, {"timeout": -1.0}, {"max_bytes": 0}, {"max_redirects": -1}])
def test_limits_must_make_sense(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="fetch needs"):
        fetch("http://example.org/", **option)


@pytest.mark.usefixtures("only_this_server")
def test_a_picture_is_read_from_its_address(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    monkeypatch.setattr(Handler, "at_picture", lambda self: self.answer(200, file.getvalue()), raising=False)
    picture = read_picture(f"{base}/picture")
    assert (picture.array == pixels).all()
    assert picture.name == f"{base}/picture"
    with pytest.raises(PictureError, match="no picture in a format"):
        read_picture(f"{base}/body")


def test_a_picture_is_not_fetched_where_addresses_are_not_allowed(base: str) -> None:
    with pytest.raises(FetchError, match="not fetched here"):
        read_picture(f"{base}/body", allow_urls=False)
    with pytest.raises(FetchError, match="not a public address"):
        read_picture(f"{base}/body")
    with pytest.raises(FetchError, match="Only http and https"):
        read_picture("s3://bucket/picture.jpg")
