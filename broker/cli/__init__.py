"""The command `ackback`.

In come the words of a command line; out go text on standard output, errors in a sentence on standard error, and an exit code. A module is a
command, or a family of them.
"""

from broker.cli.main import main

__all__ = ["main"]
