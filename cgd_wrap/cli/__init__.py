"""The command line: ``cgd-wrap demo | scan | defend | drill | report``."""

from __future__ import annotations

from collections.abc import Sequence

from cgd_wrap.cli import ending
from cgd_wrap.cli.arguments import parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, which is 1 after an error that the user can mend."""
    args = parser().parse_args(arguments)
    ending.prepare_output()
    return ending.run(lambda: args.command(args), debug=args.debug, goes_on=args.goes_on)
