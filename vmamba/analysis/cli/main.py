"""The command behind tools/analyze.py."""
from __future__ import annotations

import sys
from collections.abc import Sequence

from vmamba.errors import tool
from vmamba.train.arguments import Parser

from . import activation, attention, correlation, decay, receptive_field, repair

__all__ = ["main", "parser"]


def parser() -> Parser:
    """The parser of all commands but `repair`, which has one of its own."""
    parser = Parser(usage="%(prog)s COMMAND ... [options]",
                    description="Look into a model: what it sees, keeps in its states and forgets. Every command "
                    "draws PNG files and writes CSV files into --output.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser, prog=parser.prog)
    for part in (receptive_field, attention, activation, decay, correlation):
        part.add(commands)
    commands.add_parser("repair", help="mend flawed states by fine-tuning")     # which has a parser of its own
    return parser


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the command line names and returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["repair"]:
        return repair.main(given[1:])
    args = parser().parse_args(given)
    return args.run(args)
