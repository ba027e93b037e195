"""`optimum-cli export medvlm`: the exporter, where those who export with optimum look for it.

Installed as `optimum.commands.register.register_medvlm`, in the namespace where optimum's command line looks for
commands of other packages. It reads this file at every start: what takes time is imported when the command runs.
"""

import argparse

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class ExportMedVLMCommand(BaseOptimumCLICommand):
    """Forwards its arguments to `medvlm-export`, `-m CHECKPOINT` as the first: nothing is decided here."""

    COMMAND = CommandInfo(
        name="medvlm", help="MedVLM-R1 or Qwen2-VL-2B to a bundle: -m CHECKPOINT [options of medvlm-export] OUT"
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Take all that follows, -h too, as it is: no argument begins with the character that options begin with."""
        parser.prefix_chars = "\0"
        parser.add_argument("arguments", nargs=argparse.REMAINDER)

    def run(self) -> None:
        """Run the exporter, and end as it ends."""
        from medvlm.export.cli import main

        arguments = [] if self.args is None else self.args.arguments
        main(checkpoint_first(arguments), prog_name="optimum-cli export medvlm")


def checkpoint_first(arguments: list[str]) -> list[str]:
    """`-m CHECKPOINT` or `--model CHECKPOINT`, wherever it stands, to the place where `medvlm-export` has it."""
    usage = "optimum-cli export medvlm -m CHECKPOINT [options of medvlm-export] OUT"
    parser = argparse.ArgumentParser("optimum-cli export medvlm", usage, add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--model")
    found, rest = parser.parse_known_args(arguments)
    return rest if found.model is None else [found.model, *rest]


REGISTER_COMMANDS = [(ExportMedVLMCommand, ExportCommand)]
