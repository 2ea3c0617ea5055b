"""An evaluation's process and its workers, which tests kill, and what it leaves."""

import csv
import io
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from processes import ENVIRONMENT, kill_workers_of, run_here

from w2sd_video import evaluate
from w2sd_video.settings.command_line import parse

COMMON = (
    "--config",
    "miniature-pixart",
    "--number-of-seeds",
    "1",
    "--number-of-tuning-seeds",
    "1",
    "--batch",
    "2",
    "--budgets",
    "6",
)
SMALL = (*COMMON, "--number-of-prompts", "6", "--number-of-tuning-prompts", "3", "--arms", "strong", "CFG")
LARGE = (*COMMON, "--number-of-prompts", "12", "--number-of-tuning-prompts", "4", "--arms", "strong", "CFG", "W2SD")


def configured(name="pixart", *words):
    return parse(["--config", f"miniature-{name}", *words]).config


def command(folder, *options):
    return [sys.executable, "-m", "w2sd_video.evaluate", "--folder", str(folder), *options]


def run(folder, *options):
    """Run an evaluation to its end; return its exit code and what it printed."""
    if "--workers" not in options:
        return run_here(evaluate.main, ["--folder", str(folder), *options])
    done = subprocess.run(command(folder, *options), capture_output=True, text=True, env=ENVIRONMENT)
    return done.returncode, done.stdout + done.stderr


def start(folder, *options):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command(folder, *options), env=ENVIRONMENT, **quiet)


def samples_in(folder):
    return len(list(Path(folder).glob("samples/*.npz")))


def contents(folder):
    """Return what lies in a folder, without what differs by time."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found[name] = {each: arrays[each].tobytes() for each in arrays.files if each != "seconds"}
        elif path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(path.read_text()))
            found[name] = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        elif path.suffix == ".md":
            found[name] = [line.rsplit("|", 2)[0] for line in path.read_text().splitlines()]
        elif path.is_file() and ".job" not in path.parts and path.name != "report.html":  # which says the date
            found[name] = path.read_bytes()
    return found


def kill_driver(folder, kills, *options):
    """Start an evaluation again and again, and kill -9 it after some more samples; return how often it was killed."""
    chosen = random.Random(kills)
    for killed in range(kills):
        wanted = samples_in(folder) + chosen.randint(0, 2)
        process = start(folder, *options)
        while process.poll() is None and samples_in(folder) < wanted:
            time.sleep(0.002)
        time.sleep(chosen.uniform(0, 0.1))
        if process.poll() is not None:
            return killed
        process.send_signal(signal.SIGKILL)
        process.wait()
    return kills


def kill_workers(folder, kills, *options):
    """Run an evaluation, and kill its workers; return how often, and the exit code."""
    process = start(folder, *options)
    killed = kill_workers_of(process, kills, lambda: samples_in(folder))
    return killed, process.wait()
