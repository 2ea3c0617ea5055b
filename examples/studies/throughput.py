"""Clips a second of an evaluation of the miniatures: sampled, measured and kept, with another version beside if asked.

Batches of this version and of the other are made in turn, so that a busy machine slows both. On a CPU the seconds are
those of the process, of one core. Run: python examples/studies/throughput.py --against OTHER/bin/python
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import CLI
from jsonargparse.typing import NonNegativeInt, PositiveInt

from w2sd_video.backends import DENOISERS, registered
from w2sd_video.calibration.real_clips import known_prompts
from w2sd_video.evaluation.arms import candidates
from w2sd_video.evaluation.laboratory import spaces_of
from w2sd_video.evaluation.measures import MakeLaboratory
from w2sd_video.evaluation.plan import OF_THE_WORLD
from w2sd_video.evaluation.sample_files import SampleFiles, batches_of
from w2sd_video.evaluation.splits import Split
from w2sd_video.metrics import Score, load_metric
from w2sd_video.settings.command_line import parse

ARMS = ("strong", "CFG", "AutoGuidance", "W2SD")


def main(
    names: tuple[str, ...] = ("pixart", "dit-moe"),
    arms: tuple[str, ...] = ARMS,
    budget: PositiveInt = 20,
    batch: PositiveInt = 64,
    rounds: PositiveInt = 3,
    device: str = "auto",
    against: str | None = None,
    answer: NonNegativeInt = 0,
) -> dict[str, dict[str, float]]:
    """Measure clips a second.

    Args:
        names: of miniatures.
        arms: whose settings without a window are sampled, and late in the steps.
        budget: network evaluations a clip, at most.
        batch: clips sampled together.
        rounds: batches of each setting, of which the fastest counts.
        device: that is sampled on.
        against: the Python of an environment in which another version is installed.
        answer: used by this script itself: print the seconds of a batch for each line that is read.

    Returns:
        By miniature: clips a second, the share of the seconds in the networks, and clips a second of the other version.
    """
    if answer:
        return _answer(names[0], arms, budget, batch, device)
    found = {}
    for name in names:
        words = ["--names", f"[{name}]", "--arms", f"[{','.join(arms)}]", "--budget", str(budget)]
        words += ["--batch", str(batch), "--device", device, "--answer", "1"]
        with ExitStack() as stack:
            sides = [sys.executable, *([against] if against else [])]
            ask = [stack.enter_context(_other(python, words)) for python in sides]
            settings, *_ = (side("settings").split("|") for side in ask)
            seconds = {setting: [[float(side(setting)) for side in ask] for _ in range(rounds)] for setting in settings}
            share = float(ask[0]("share"))
        best = {setting: [min(column) for column in zip(*rows, strict=True)] for setting, rows in seconds.items()}
        for setting, of_sides in best.items():
            ratio = f", {of_sides[1] / of_sides[0]:.2f} x the other version" if against else ""
            print(f"{name}, {setting}: {batch / of_sides[0]:.1f} clips/s{ratio}", flush=True)
        total = [sum(column) for column in zip(*best.values(), strict=True)]
        clips = batch * len(best)
        found[name] = {"clips a second": clips / total[0], "share of the networks": share}
        line = f"{name}: {clips / total[0]:.1f} clips/s over all, {share:.0%} of the seconds in the networks"
        if against:
            found[name]["clips a second of the other version"] = clips / total[1]
            line += f"; the other version {clips / total[1]:.1f}, {total[1] / total[0]:.2f} x"
        print(line, flush=True)
    return found


@contextmanager
def _other(python: str, words: list[str]) -> Iterator[Callable[[str], str]]:
    """Start a process that answers with the seconds of a setting, and give a function that asks it."""
    command = [python, str(Path(__file__).absolute()), *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(what: str) -> str:
            process.stdin.write(f"{what}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            if not (line := process.stdout.readline()):  # type: ignore[union-attr]
                raise RuntimeError(f"{python}: ended; its own words say why")
            return line.strip()

        yield ask
        process.stdin.close()


def _answer(name: str, arms: tuple[str, ...], budget: int, batch: int, device: str) -> dict[str, dict[str, float]]:
    """Answer lines until there are no more: the settings, the seconds of a batch of one, the share of the networks."""
    config = parse(["--config", f"miniature-{name}", "--device", device]).config
    of_arms = [candidates(arm, config, budget) for arm in arms]
    chosen = [one for settings in of_arms for one in (*settings[:1], *settings[1:2]) if settings]
    settings = {f"{one.arm} ({one.setting})": one.config for one in chosen}
    metrics = [load_metric(each) for each in OF_THE_WORLD if config.frames != 1 or each != "motion_error"]
    prompts = known_prompts(config)
    split = Split("tuning", prompts[: min(batch, len(prompts))], 0, -(-batch // len(prompts)))
    with tempfile.TemporaryDirectory() as scratch:
        for folder in ("samples", "clips"):
            Path(scratch, folder).mkdir()
        scores = tuple(metric.name for metric in metrics if isinstance(metric, Score))
        files = SampleFiles(Path(scratch), "", scores, tuple(spaces_of(metrics)))
        make = MakeLaboratory(config, files, {}, {}, 0, metrics)()
        pipe: Any = make._pipe
        clock = time.perf_counter if pipe.device.type == "cuda" else time.process_time

        def seconds(setting: str) -> float:
            begun = clock()
            make(batches_of(settings[setting], split, batch)[0])
            return clock() - begun

        for setting in settings:  # to warm up
            seconds(setting)
        for line in sys.stdin:
            what = line.strip()
            if what == "settings":
                print("|".join(settings), flush=True)
            elif what == "share":
                with _timed(_networks(pipe), clock) as of_networks:
                    whole = sum(map(seconds, settings))
                print(sum(of_networks) / whole, flush=True)
            else:
                print(seconds(what), flush=True)
    return {}


def _networks(pipe: Any) -> list[type]:
    """Return the classes of a pipeline's denoisers."""
    own = [getattr(pipe, name) for name in DENOISERS if getattr(pipe, name, None) is not None]
    return list({type(network) for network in (*own, *registered(pipe).values())})


@contextmanager
def _timed(networks: list[type], clock: Callable[[], float]) -> Iterator[list[float]]:
    """Note the seconds that networks take, and wait for the device before and after each."""
    spent: list[float] = []
    forwards = {network: network.forward for network in networks}  # type: ignore[attr-defined]

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            _wait()
            begun = clock()
            result = forward(*args, **kwargs)
            _wait()
            spent.append(clock() - begun)
            return result

        return timed_forward

    for network, forward in forwards.items():
        network.forward = timed(forward)  # type: ignore[attr-defined]
    try:
        yield spent
    finally:
        for network, forward in forwards.items():
            network.forward = forward  # type: ignore[attr-defined]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    CLI(main, as_positional=False)
