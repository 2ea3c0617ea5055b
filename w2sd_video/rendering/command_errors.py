"""What ends a command, in one line: the only place where a command's errors are turned into exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from w2sd_video.command_parser import INTERRUPTED, fail
from w2sd_video.jobs.pool import PoolError
from w2sd_video.messages import ConfigError, first_line, is_disk_full, is_out_of_memory
from w2sd_video.rendering.load import LoadError
from w2sd_video.rendering.video import VideoError

TRACEBACK = "W2SD_TRACEBACK"
"""An environment variable: where it is set, errors that nobody foresaw show where they come from."""


_OF_NAMES = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
"""What the system says of a name that was given, and not of what it met when it worked."""


@contextmanager
def errors_in_one_line(command: str) -> Iterator[None]:
    """Print whatever ends a command as one line on stderr, and exit: what is half-written was removed by then.

    Args:
        command: heads the line.

    Raises:
        SystemExit: with 2 for what makes no sense, 130 for Ctrl-C as shells have it, and 1 for all else.
    """
    try:
        yield
    except (ConfigError, VideoError) as error:
        fail(str(error), 1 if is_disk_full(error) or is_out_of_memory(error) else 2, command)
    except (LoadError, PoolError) as error:
        fail(str(error), 1, command)
    except KeyboardInterrupt:
        fail("interrupted; what was finished is kept", INTERRUPTED, command)
    except BrokenPipeError as error:  # what read the output is gone; Python's last flush would fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_NAMES:
            fail(first_line(error), 2, command)
        if os.environ.get(TRACEBACK):
            raise
        if isinstance(error, OSError) or is_out_of_memory(error) or is_disk_full(error):
            fail(first_line(error), 1, command)
        unforeseen = f"nobody foresaw this; {TRACEBACK}=1 shows where it comes from"
        fail(f"{type(error).__name__}: {first_line(error)} ({unforeseen})", 1, command)
