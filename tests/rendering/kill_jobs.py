"""A job's process, killed at random moments until it ends, and what it leaves, as tests look at it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from processes import OF_A_USER, run_here

from w2sd_video import render

TIMES = ("seconds", "date")
"""What differs between two runs in a record; the page says them too."""


def command(folder, *options):
    return [sys.executable, "-m", "w2sd_video.render", "--output", f"{folder}/", *options]


def run(folder, *options):
    """Run a job to its end; return its exit code and what it printed."""
    return run_here(render.main, ["--output", f"{folder}/", *options])


def run_and_kill(folder, options, kills, seed):
    """Start a job again and again, and kill -9 it; return what was seen in its folder at the moment of each kill.

    It is killed as soon as latents are kept, a file is half-written or lacks its record, or at a random moment.
    """
    chosen, seen = random.Random(seed), []
    while len(seen) < kills:
        wanted = ("latents", "unfinished", "without record", "any")[len(seen) % 4]
        before = set(Path(folder).rglob("*"))
        process = subprocess.Popen(
            command(folder, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=OF_A_USER
        )
        while process.poll() is None and not (now := moment(folder, before)):
            time.sleep(0.002)  # until it makes its first sample
        ends = time.monotonic() + chosen.uniform(0, 2)
        while process.poll() is None and (time.monotonic() < ends if wanted == "any" else wanted not in now):
            now = moment(folder, before)
        if process.poll() is not None:
            return seen
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen.append(wanted)
    return seen


def moment(folder, before):
    """Return what a job is doing, as its folder shows it."""
    try:
        files = set(Path(folder).rglob("*")) - before
    except OSError:  # a folder that went away meanwhile
        return set()
    names = {path.name for path in files}
    doing = {"latents"} if any(path.parent.name == "latents" for path in files) else set()
    doing |= {"unfinished"} if any(".part" in name for name in names) else set()
    return doing | (
        {"without record"} if any(f"{name}.json" not in names for name in names if name[-1] in "4g") else set()
    )


def contents(folder):
    """Return what lies in a folder, records without what differs by time."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and ".job" not in path.parts and path.suffix != ".html":
            data = path.read_bytes()
            if path.suffix == ".json":
                record = json.loads(data)
                data = json.dumps({key: value for key, value in record.items() if key not in TIMES})
            found[str(path.relative_to(folder))] = data
    return found


def leftovers(folder):
    return [str(path) for path in Path(folder).rglob("*") if ".part" in path.name or "latents" in path.parts]
