"""What a server takes at most, and who may ask it."""

import contextlib
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, plain

# What other programs ask with; a page fetches itself from no other site.
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_LEAST_TOKEN = 16
_DNS_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")


@dataclass(frozen=True)
class Limits:
    """queue: requests that may wait. wait_s: how long one may wait. body_bytes: of a request. images: of a request.

    text: characters of all messages of a request. pixels: of all images of a request. waiting_bytes: decoded images of
    all requests that wait. answers: `n`. header_s: until TLS's handshake is done, and until a request's headers are
    complete. chunk_s: between two pieces of a body, or for a client to take what it is sent. body_s: until a body is
    complete. connections: at a time.
    """

    queue: int = 16
    wait_s: float = 300.0
    body_bytes: int = 64 * 2**20
    images: int = 8
    text: int = 20_000
    pixels: int = 100_000_000
    waiting_bytes: int = 2**30
    answers: int = 8
    header_s: float = 10.0
    chunk_s: float = 20.0
    body_s: float = 120.0
    connections: int = 128


@dataclass(frozen=True)
class Access:
    """Where the server listens, and what it asks of who comes.

    host: an address. token: what every request but those for the page's files must bear; None asks for none. names:
    hosts by which clients may call it, lower case, without a port.
    """

    host: str
    port: int
    token: str | None = None
    names: frozenset[str] = frozenset(LOOPBACK_NAMES)
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.tls_cert is not None


@dataclass(frozen=True)
class Settings:
    """All that a server is told."""

    access: Access
    limits: Limits = field(default_factory=Limits)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone. Raises `InputError` for what is no address."""
    return _address(host).is_loopback


def host_name(host: str) -> str:
    """An address as it stands in a URL: IPv6 in brackets."""
    address = _address(host)
    return f"[{address}]" if address.version == 6 else str(address)


def allowed_name(name: str) -> str:
    """A name as it stands in a Host header, lower case. Raises `InputError` for what no such header holds."""
    with contextlib.suppress(ValueError):
        return host_name(str(ipaddress.ip_address(name.strip("[]"))))
    try:
        written = name.encode("idna").decode("ascii").lower()
    except UnicodeError:
        written = ""
    if not _DNS_NAME.fullmatch(written):
        raise InputError(
            f"--allow-host {plain(name)!r} is no name of a host; give it alone, without a scheme, a port or a path"
        )
    return written


def check_token(token: str) -> str:
    """`token` as it is. Raises `InputError` for one that can be guessed, or that no header can hold."""
    if len(token) < _LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"the token must have at least {_LEAST_TOKEN} letters, digits and signs, and no blanks")
    return token


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    # No name is ever looked up.
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise InputError(f"{plain(host)} is no address; give --host one, such as 127.0.0.1 or 0.0.0.0") from None
