"""`python -m flashsvd`: everything the workbench does, scriptable. Heavy imports wait for their command."""

from __future__ import annotations

import sys

from flashsvd.errors import Cancelled, FlashSVDError
from flashsvd.threads import spin_briefly


def main() -> None:
    """Runs the command line; errors meant for people are one line on stderr and exit code 2."""
    spin_briefly()
    from flashsvd.cli.commands import application

    try:
        application()
    except FlashSVDError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Cancelled):
        print("cancelled", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe, such as head, has seen enough.
        sys.stderr.close()
        sys.exit(0)
