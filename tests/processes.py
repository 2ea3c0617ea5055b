"""Commands that tests run: in this process, or in ones of their own, what these hear, and workers that are killed."""

import contextlib
import io
import os
import random
import signal
import time
from pathlib import Path

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
OF_A_USER = {name: value for name, value in ENVIRONMENT.items() if name != "W2SD_TRACEBACK"}
"""In which an error that nobody foresaw is one line, as a user sees it."""


def run_here(main, argv):
    """Run a command in this process, which has torch already; return its exit code and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main(list(argv))
        except SystemExit as ended:
            code = ended.code
    return code or 0, printed.getvalue()


def hears_ctrl_c():
    """Processes in the background of a shell are started deaf to it, and those that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def kill_workers_of(process, kills, made):
    """Kill -9 one of the workers of a process at a time, some moment after it made more; return how often.

    A machine that kills each worker before it is ready makes nothing.

    Args:
        process: a Popen.
        kills: how often at most; it may end before.
        made: a function that counts what is made.
    """
    chosen, killed = random.Random(kills), 0
    while killed < kills and process.poll() is None:
        wanted = made() + chosen.randint(1, 2)
        while process.poll() is None and made() < wanted:
            time.sleep(0.002)
        time.sleep(chosen.uniform(0, 0.1))
        if workers := workers_of(process.pid):
            os.kill(chosen.choice(workers), signal.SIGKILL)
            killed += 1
    return killed


def workers_of(driver):
    """Return the processes of Ray's actors that descend from a driver."""
    parents, actors = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_text().startswith("ray::_Actor"):
                actors.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue

    def descends(process):
        return process == driver or (process in parents and descends(parents[process]))

    return [actor for actor in actors if descends(actor)]
