"""Failures of the machine, told in a line with what to do: a full disk, a folder that may not be written."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

WHOLE = "The last good site and all finished runs are as they were."
TOLD_ERRORS = {
    errno.ENOSPC: f"The disk is full: make room and run the command again. {WHOLE}",
    errno.EDQUOT: f"Your share of the disk is full: make room and run the command again. {WHOLE}",
    errno.EACCES: f"This user may not write there. {WHOLE}",
    errno.EROFS: f"Nothing can be written there. {WHOLE}",
}


def told(command: Callable[[], int]) -> int:
    """The exit status of a command; 1, and a line on the error stream, if the machine fails it."""
    try:
        return command()
    except OSError as error:
        if error.errno not in TOLD_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror}. {TOLD_ERRORS[error.errno]}", file=sys.stderr)
        return 1
