"""The `medvlm` group: commands found by entry point, errors in one line."""

import sys
from importlib import metadata
from typing import Any

import click

from .errors import MedVLMError, plain

_ENTRY_POINTS = "medvlm.commands"


def one_line(error: MedVLMError) -> str:
    """The error as one line for stderr."""
    return "Error: " + plain(" ".join(str(error).split()))


def shown_item(item: object) -> str:
    """What a progress bar says of the item that it is at; nothing before the first."""
    return "" if item is None else str(item)


class ErrorCommand(click.Command):
    """A command whose `MedVLMError`s print one line and exit with their code: 2 for wrong input, 1 for a failure."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MedVLMError as error:
            click.echo(one_line(error), err=True)
            sys.exit(error.exit_code)


class CommandGroup(click.Group):
    """Adds the commands that other parts of the project announce, so that the runtime imports none of them."""

    command_class = ErrorCommand

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own commands and announced ones, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *_announced().names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """An own command, or an announced one, which is imported now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _announced().names:
            return own
        return _announced()[cmd_name].load()


def _announced() -> metadata.EntryPoints:
    return metadata.entry_points(group=_ENTRY_POINTS)
