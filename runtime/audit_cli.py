"""The `medvlm audit` commands: whether a log is as it was written."""

import sys
from pathlib import Path

import click

from .audit_verify import verify_log
from .commands import ErrorCommand
from .errors import plain


class _AuditGroup(click.Group):
    command_class = ErrorCommand


@click.group(cls=_AuditGroup)
def audit() -> None:
    """Check the log that --audit writes."""


@audit.command()
@click.argument("log", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--key", type=click.Path(path_type=Path), help="The log's key  [default: FILE.key]")
def verify(log: Path, key: Path | None) -> None:
    """Name every line of an audit log that was changed, removed, moved or cut off.

    Prints how many lines there are and the last one's digest; noted elsewhere, they show later that a whole log was
    replaced by an older state of itself.
    """
    verdict = verify_log(log, key)
    for fault in verdict.faults:
        click.echo(plain(f"{log}: {fault}"), err=True)
    if verdict.faults:
        sys.exit(1)
    click.echo(
        f"{plain(str(log))}: {verdict.end.lines} lines, all as they were written; the last is {verdict.end.last}"
    )
