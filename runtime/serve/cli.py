"""The `medvlm serve` command."""

import importlib.util
import logging
import math
import secrets
import warnings
from pathlib import Path

import click

from ..cli_options import BUNDLE, Asking, Loading, asking_options, loading_options
from ..commands import ErrorCommand
from ..errors import InputError, plain
from ..processor import Processor
from .settings import LOOPBACK_NAMES, Access, Limits, Settings, allowed_name, check_token, host_name, is_loopback

_PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")
_DEFAULTS = Limits()
# Every address of the machine: no client calls it so.
_ANY = ("0.0.0.0", "[::]")  # noqa: S104


@click.command(cls=ErrorCommand)
@BUNDLE
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes any free one.")
@click.option(
    "--token",
    envvar="MEDVLM_TOKEN",
    metavar="TOKEN",
    help="Ask for this token, also taken from MEDVLM_TOKEN; made and printed where others may reach the address.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), metavar="FILE", help="Speak TLS with this certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="The certificate's private key.")
@click.option(
    "--allow-host", "names", multiple=True, metavar="NAME", help="A name by which clients may call the server; several."
)
@click.option(
    "--max-queue", type=click.IntRange(0, 1000), default=_DEFAULTS.queue, show_default=True, help="So many may wait."
)
@click.option(
    "--max-wait",
    type=click.FloatRange(0, min_open=True),
    default=_DEFAULTS.wait_s,
    show_default=True,
    help="Seconds after which a question that waits is refused.",
)
@click.option(
    "--max-images", type=click.IntRange(1, 64), default=_DEFAULTS.images, show_default=True, help="Of one question."
)
@click.option(
    "--max-body-mb",
    type=click.IntRange(1, 1024),
    default=_DEFAULTS.body_bytes // 2**20,
    show_default=True,
    help="MiB of one request, its images included.",
)
@asking_options
@loading_options
def serve(
    bundle: Path,
    host: str,
    port: int,
    token: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    names: tuple[str, ...],
    max_queue: int,
    max_wait: float,
    max_images: int,
    max_body_mb: int,
    asking: Asking,
    loading: Loading,
) -> None:
    """Serve a page and OpenAI's chat protocol on this workstation.

    Questions are answered one after the other. Ctrl-C or SIGTERM ends the server after the answer begun. Images,
    questions and answers are kept in memory alone.
    """
    _check_installed()
    access = _read_access(host, port, token, tls_cert, tls_key, names)
    if not math.isfinite(max_wait):
        raise InputError("--max-wait is no number of seconds; give one, such as 300")
    _silence()
    limits = Limits(queue=max_queue, wait_s=max_wait, images=max_images, body_bytes=max_body_mb * 2**20)
    from .server import open_socket
    from .server import serve as run
    from .service import start_service

    opened, _ = loading.open(bundle)
    processor = Processor(opened)
    # Before the sessions are opened, which takes seconds.
    bound = open_socket(access)
    model = loading.load(opened, processor)
    service = start_service(model, opened, asking, Settings(access, limits))
    run(service, bound, lambda _stop: _say_where(access, bound.getsockname()[1], made=token is None))


def _silence() -> None:
    """Show no message and no warning of a library: it may quote what it chokes on."""
    logging.disable()
    # Not by a filter alone: `warnings.catch_warnings`, which Pillow's errors are read in, is not for several threads.
    warnings.simplefilter("ignore")
    warnings.showwarning = lambda *_arguments, **_named: None


def _check_installed() -> None:
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"serving needs {', '.join(absent)}; pip install 'medvlm[serve]'")


def _read_access(
    host: str, port: int, token: str | None, tls_cert: Path | None, tls_key: Path | None, names: tuple[str, ...]
) -> Access:
    """Who may ask. An address that others reach always has a token."""
    loopback = is_loopback(host)
    address = host_name(host)
    if (tls_cert is None) != (tls_key is None):
        raise InputError("TLS needs both --tls-cert and --tls-key; give the other one too")
    if tls_cert is not None:
        _check_tls(tls_cert, tls_key)
    if token is None and not loopback:
        token = secrets.token_urlsafe(32)
    return Access(
        host=address.strip("[]"),
        port=port,
        token=None if token is None else check_token(token),
        names=frozenset((*LOOPBACK_NAMES, address, *map(allowed_name, names))),
        tls_cert=tls_cert,
        tls_key=tls_key,
    )


def _check_tls(cert: Path, key: Path | None) -> None:
    # Slow to import, for every other command.
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        reason = plain(str(getattr(error, "strerror", None) or error))[:120]
        raise InputError(
            f"{plain(str(cert))} and {plain(str(key))} are no certificate and its key without a password ({reason})"
        ) from None


def _say_where(access: Access, port: int, *, made: bool) -> None:
    """Print the page's address, and what a person should know about who can reach it."""
    scheme = "https" if access.secure else "http"
    # A token in a fragment is sent nowhere: the page takes it from there.
    fragment = f"#token={access.token}" if access.token and made else ""
    others = sorted(access.names - {*LOOPBACK_NAMES, *_ANY})
    address = host_name(access.host)
    shown = others[0] if others else "127.0.0.1"
    click.echo(f"Serving at {scheme}://{address if is_loopback(access.host) else shown}:{port}/{fragment}")
    if is_loopback(access.host):
        return
    if not others:
        click.echo("Warning: clients elsewhere are refused until --allow-host names what they call this by", err=True)
    if not access.secure:
        click.echo("Warning: without --tls-cert and --tls-key, others on the network can read what is sent", err=True)
