"""Workers for the tests of the pool: what they are made of can be sent to another process."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from w2sd_video.jobs.pool import TaskFailed
from w2sd_video.messages import ConfigError


@dataclass(frozen=True)
class MakeWriter:
    """Makes a worker that writes a file a task into a folder, whole, and returns the number of its process.

    Attributes:
        folder: of the files; "made-PID" are of the workers.
        seconds: that a task takes.
        misfortunes: what befalls it, by the number of the task.
        refused: why no worker can be made.
    """

    folder: str
    seconds: float = 0.0
    misfortunes: tuple[tuple[int, str], ...] = ()
    refused: str = ""

    def __call__(self) -> Callable[[int], int]:
        if self.refused == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.refused:
            raise ConfigError(self.refused)
        (Path(self.folder) / f"made-{os.getpid()}").touch()
        return self.work

    def work(self, number: int) -> int:
        time.sleep(self.seconds)
        misfortune = dict(self.misfortunes).get(number)
        been_here = Path(self.folder) / f"been-{number}"
        if misfortune == "always dies" or (misfortune == "dies once" and not been_here.exists()):
            been_here.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if misfortune == "fails":
            raise TaskFailed("the task says why")
        if misfortune == "raises":
            raise RuntimeError("\na foreign line\nand another")
        if misfortune == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")
        if misfortune == "slow":
            time.sleep(3)
        part = Path(self.folder) / f".{number}.part"
        part.write_text(str(number))
        part.rename(Path(self.folder) / f"{number}.txt")
        return os.getpid()
