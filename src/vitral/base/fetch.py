"""Fetching a picture's bytes from an http or https address, on behalf of whoever typed it.

An address may come from a stranger, who could make us read what only this machine can reach (server-side request
forgery). So at every hop the host is resolved once, every address it has must be public, and the connection goes to
the very address that was checked: a name that resolves differently a moment later (DNS rebinding) gains nothing.
Size, hops and the time of the whole transfer are bounded. Proxies named by the environment are not used, because a
proxy resolves names itself.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

from vitral.errors import FetchError, UsageError

__all__ = ["MAX_BYTES", "fetch"]

MAX_BYTES = 64 * 2**20

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": "vitral", "Accept": "image/*", "Connection": "close"}
_CHUNK = 64 * 2**10
_Resolved = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]  # as socket.getaddrinfo returns them


def fetch(
    url: str,
    *,
    timeout: float = 10.0,
    max_bytes: int = MAX_BYTES,
    max_redirects: int = 5,
    allow_private: bool = False,
) -> bytes:
    """The body behind an http or https address.

    Args:
        url: the address.
        timeout: seconds for everything together: names, connections, redirects and body.
        max_bytes: the longest body that is accepted.
        max_redirects: how many redirects are followed; each hop is checked like the first.
        allow_private: also connect to loopback, private and other non-public addresses. Only for addresses that the
            owner of the machine wrote.

    Raises:
        FetchError: the address must not be fetched, cannot be, answers with an error, or exceeds a limit.
        UsageError: a limit that is not positive.
    """
    if not timeout > 0 or max_bytes < 1 or max_redirects < 0:
        raise UsageError(
            f"fetch needs a positive timeout and max_bytes and max_redirects of at least 0, but got timeout={timeout}, "
            f"max_bytes={max_bytes} and max_redirects={max_redirects}."
        )
    deadline = time.monotonic() + timeout
    hop = url
    try:
        for _ in range(max_redirects + 1):
            body, location = _get(_parse(hop), deadline, max_bytes, allow_private)
            if location is None:
                return body
            hop = location
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            reason = f"It did not arrive within {timeout:g} seconds. Try again, or allow more time with `timeout`."
        elif isinstance(error, FetchError):
            reason = error.reason
        else:
            reason = f"The transfer failed ({_brief(error)}). Check the address and the connection."
        raise FetchError(_label(url), reason) from error
    raise FetchError(_label(url), f"It redirects more than {max_redirects} times. Give the address it should end at.")


class _Address(NamedTuple):
    """A parsed address: what to connect to, and what to ask for there."""

    url: str
    scheme: str
    host: str
    port: int
    target: str


def _parse(url: str) -> _Address:
    """Take an address apart, or refuse it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise FetchError(_label(url), f"Only http and https addresses are fetched, not {parts.scheme or 'bare'} ones.")
    if not parts.hostname:
        raise FetchError(_label(url), "The address names no host. It should look like https://example.org/picture.jpg.")
    if parts.username is not None or parts.password is not None:
        raise FetchError(_label(url), "The address carries a user name or password. Fetch it yourself and pass bytes.")
    host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode("ascii")
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return _Address(url, parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80), target)


def _get(address: _Address, deadline: float, max_bytes: int, allow_private: bool) -> tuple[bytes, str | None]:
    """One hop: the body and None, or nothing and the address to go on to."""
    resolved = _resolve(address, deadline)
    if not allow_private:
        for *_, (ip, *_) in resolved:
            if not _is_public(ip):
                raise FetchError(
                    _label(address.url),
                    f"{address.host} leads to {ip}, which is not a public address, so it is not fetched. "
                    "Read the file yourself and pass its bytes.",
                )
    with closing(_connect(resolved, deadline)) as plain:
        sock = plain
        if address.scheme == "https":
            sock = _tls().wrap_socket(plain, server_hostname=address.host)
        # A socket's own timeout starts anew with every byte that trickles in; this bounds all of them together.
        watchdog = threading.Timer(_left(deadline), _cut, [sock])
        watchdog.daemon = True
        watchdog.start()
        with closing(sock):
            try:
                return _exchange(sock, address, deadline, max_bytes)
            finally:
                watchdog.cancel()


def _exchange(sock: socket.socket, address: _Address, deadline: float, max_bytes: int) -> tuple[bytes, str | None]:
    """Ask over an open connection and read the answer."""
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.host, address.port)
    connection.auto_open = 0  # never connect by name: the name was resolved and checked already
    connection.sock = sock
    connection.request("GET", address.target, headers=_HEADERS)
    with closing(connection.getresponse()) as response:
        location = response.headers.get("Location")
        if response.status in _REDIRECTS and location:
            return b"", urllib.parse.urljoin(address.url, location)
        if response.status != 200:
            raise FetchError(_label(address.url), f"The server answered {response.status} {response.reason}.")
        return _read(response, address, deadline, max_bytes), None


def _read(response: http.client.HTTPResponse, address: _Address, deadline: float, max_bytes: int) -> bytes:
    """The body, no longer than it may be and no shorter than it was announced."""
    too_long = FetchError(_label(address.url), f"It is larger than {max_bytes:,} bytes, the most that is fetched.")
    if response.length is not None and response.length > max_bytes:
        raise too_long
    body = bytearray()
    while chunk := response.read(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise too_long
    if time.monotonic() >= deadline:
        raise TimeoutError("cut at the deadline")
    if response.length:
        raise FetchError(_label(address.url), f"The transfer ended {response.length:,} bytes too early. Try again.")
    return bytes(body)


def _resolve(address: _Address, deadline: float) -> Sequence[_Resolved]:
    """Every network address of the host. In a thread, because a resolver can take longer than we have."""
    outcome: list[Sequence[_Resolved] | OSError | UnicodeError] = []

    def ask() -> None:
        try:
            outcome.append(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not outcome:
        raise TimeoutError("the name was not resolved in time")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, whatever way it is dressed up."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local):
        return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _connect(resolved: Sequence[_Resolved], deadline: float) -> socket.socket:
    """A connection to the first of these addresses that takes one."""
    failure: OSError = OSError("the host has no address")
    for family, kind, protocol, _, where in resolved:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(where)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


@functools.cache
def _tls() -> ssl.SSLContext:
    """The certificates this machine trusts; reading them takes longer than most transfers."""
    return ssl.create_default_context()


def _cut(sock: socket.socket) -> None:
    """End a transfer from outside: whoever is reading wakes up. Goes past TLS, which would say goodbye first."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    """Seconds until the deadline; it has passed if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def _label(url: str) -> str:
    """An address fit for a message: without credentials, and not a page long."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    bare = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
    return bare if len(bare) <= 200 else bare[:199] + "…"


def _brief(error: Exception) -> str:
    """An exception in a few words."""
    return (str(error) or type(error).__name__)[:200]
