"""Train the miniatures: scenes and Fashion-MNIST on a GPU in minutes, or the older sprites on a CPU in hours.

    python -m w2sd_video.miniatures.train --out DIR --stage scenes --device cuda --minutes 9 --weights PACKS

trains all models of scenes side by side, for nine minutes from its first line to its last, and leaves in PACKS at most
eight files of at most 16 MiB. With the same --out it goes on where it stopped, nothing lost; with an empty --out and
PACKS it goes on from these, of which the optimizer's moments are no part. With --last-run learning rates have fallen to
nothing at the end. --resume goes on from packs of another folder. Killed at any time, the last good state is whole.

    python -m w2sd_video.miniatures.train --assemble PIPELINES --weights PACKS

makes pipelines and the configurations of their pairs of that; W2SD_MINIATURES=PIPELINES has every command find them.

Stages have the names of networks and of groups: scenes (15 networks), fashion (real pictures, --fashion-mnist), probe
(their judge, by EfficientNet-Lite0), seeds (a pair of scenes and one of fashion from two more seeds). --dry-run says
what each will take. What a stage needs is trained first, unless it is there. On a CPU batches are an eighth as large,
and stages are best run one by one.

The sprites' stages, in the order they need each other, with their planned minutes on one CPU core (--scale):

    classifier          3   judge of shape, colour and direction, on true clips           seed 8
    image_classifier    3   the same on single pictures                                   seed 14
    animatediff         image_vae 6, unet_base 9, unet_strong 11, unet_weak 1, motion 36  seeds 1, 3, 4, 9, 5
                        lora_comet 6, controlnet_edges 8                                  seeds 19, 21
    cogvideox           video_vae 17, video_decoder 6, transformer_weak 19,
                        transformer_strong 40, transformer_details 10                     seeds 2, 10, 6, 7, 13
    pixart              pixart_weak 6, pixart_strong 9                                    seeds 16, 17
    dit_moe             14                                                                seed 18

`--stage sprites` is all of them. Their finished pipelines are written to `--weights`, the package's own unless given.
The weights that come with the package were made while these stages settled, on a busy machine, in so many steps:
classifier 822, image_vae 1162, unet_base 2329 (new tokens and text encoder after 920), unet_strong 1980, unet_weak 300,
motion 1727 (with the base in the weak UNet's place), video_vae 1779, video_decoder 718, transformer_weak 1680,
transformer_strong 6255 (with two restarts of the learning rate), transformer_details 190, image_classifier 8196,
lora_comet 417, controlnet_edges 2851, pixart_weak 1578 (in three pieces), pixart_strong 3213 (in three pieces),
dit_moe 8277 (in three pieces).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from pathlib import Path

import torch

from w2sd_video._moved import names_of
from w2sd_video.command_parser import OneLineParser, fail
from w2sd_video.messages import suggest
from w2sd_video.miniatures import WEIGHTS
from w2sd_video.rendering.command_errors import errors_in_one_line

__getattr__ = names_of("w2sd_video.miniatures.train")  # a command is named __main__ when it runs

_COMMAND = "miniatures.train"
_ENDING = 12.0
"""Seconds of a run that are kept for its last checkpoints and its packs."""
_JOBS = {"cuda": 4, "cpu": 1}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    started = time.time()
    parser = OneLineParser(_COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, help="folder for checkpoints and encoded clips")
    add("--stage", nargs="+", default=["scenes"], help="stages or groups of them; scenes unless given")
    add("--weights", type=Path, help="folder of packs, or of the sprites' pipelines; OUT/packs unless given")
    add("--resume", type=Path, metavar="FOLDER", help="packs to go on from; those of --weights unless given")
    add("--minutes", type=float, help="of this run, from start to end; without it stages run to their planned steps")
    add("--last-run", action="store_true", help="finish the stages in this run, however far they get")
    add("--jobs", type=int, help="processes side by side; 4 on a GPU and 1 on a CPU unless given")
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    add("--compile", action="store_true", help="compile networks: a minute each, for steps that may be faster")
    add("--fashion-mnist", type=Path, metavar="FOLDER", help="of that data set's four files")
    add("--pool", type=int, help="clips that are encoded once and trained on; as many as the device bears unless given")
    add("--dry-run", action="store_true", help="say what each stage will take, from ten measured steps of it")
    add("--assemble", type=Path, metavar="FOLDER", help="train nothing; write pipelines and configurations there")
    add("--scale", type=float, default=1.0, help="multiplies the planned minutes of the sprites' stages")
    add("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    if not 0 < args.scale <= 1000:
        parser.error(f"--scale {args.scale}: must be above 0 and at most 1000")
    if not 1 <= args.threads <= 1024:
        parser.error(f"--threads {args.threads}: must be from 1 to 1024")
    if args.minutes is not None and not 0.1 <= args.minutes <= 10_000:
        parser.error(f"--minutes {args.minutes}: must be from 0.1 to 10000")
    if args.pool is not None and not 16 <= args.pool <= 10**6:
        parser.error(f"--pool {args.pool}: must be from 16 to 1000000")
    if args.jobs is not None and not 1 <= args.jobs <= 64:
        parser.error(f"--jobs {args.jobs}: must be from 1 to 64")
    if args.out is None and args.assemble is None:
        parser.error("--out: name a folder for checkpoints, or --assemble FOLDER for pipelines")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    with errors_in_one_line(_COMMAND):
        if args.assemble is not None:
            _assemble(args)
            return
        sprites = _sprites(parser, args.stage)
        if sprites:
            _train_sprites(sprites, args)
        else:
            _train(args, started)


def _sprites(parser: OneLineParser, names: list[str]) -> list[str]:
    """Return the sprites' stages that are meant; none where others are."""
    from w2sd_video.miniatures.learning.stage_list import GROUPS, STAGES
    from w2sd_video.miniatures.training import stages as older

    tracks = {stage.track for stage in older.STAGES.values()}
    known_sprites = {"sprites", *older.STAGES, *tracks}
    known = {*known_sprites, *GROUPS, *STAGES}
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown stage {unknown[0]!r}; {suggest(unknown[0], sorted(known))}")
    of_sprites = [name for name in names if name in known_sprites]
    if of_sprites and len(of_sprites) < len(names):
        parser.error(f"--stage {' '.join(names)}: the sprites' stages are trained by themselves")
    return older.select(["all" if name == "sprites" else name for name in of_sprites]) if of_sprites else []


def _train_sprites(names: list[str], args: argparse.Namespace) -> None:
    from w2sd_video.miniatures.training.fit import Budget
    from w2sd_video.miniatures.training.stages import STAGES, run

    for name in names:
        run(name, args.out, Budget(STAGES[name].minutes * args.scale), args.weights or WEIGHTS)


def _assemble(args: argparse.Namespace) -> None:
    from w2sd_video.miniatures.learning.assemble import assemble, write_real_pictures
    from w2sd_video.miniatures.learning.stage_loop import TrainingError

    packs = args.weights or (args.out / "packs" if args.out else None)
    if packs is None:
        fail("--assemble: name the packs with --weights", 2, _COMMAND)
    try:
        for name, said in assemble(packs, args.assemble).items():
            print(f"{name}: {said}")
        if args.fashion_mnist is not None:
            write_real_pictures(args.fashion_mnist, args.assemble)
    except TrainingError as error:
        fail(str(error), 1, _COMMAND)


def _train(args: argparse.Namespace, started: float) -> None:
    from w2sd_video.miniatures.learning import lanes
    from w2sd_video.miniatures.learning.bench import Bench
    from w2sd_video.miniatures.learning.dry_run import measure
    from w2sd_video.miniatures.learning.packs import check_count, read_packs, write_packs
    from w2sd_video.miniatures.learning.running import prepare
    from w2sd_video.miniatures.learning.stage_list import STAGES, chosen
    from w2sd_video.miniatures.learning.stage_loop import TrainingError, read_state

    failed: dict[str, str] = {}
    try:
        device = lanes.device_of(args.device)
        names = chosen(args.stage)
        bench = Bench(args.out, device, args.fashion_mnist, args.pool, features=_features(names))
        if any(STAGES[name].group in ("fashion", "probe") for name in names):
            from w2sd_video.miniatures.fashion import read_pictures

            read_pictures(args.fashion_mnist)
        packs = args.weights or args.out / "packs"
        checkpoints = args.out / "stages"
        args.out.mkdir(parents=True, exist_ok=True)
        if args.resume is not None and not any(args.resume.glob("*.safetensors")):
            raise TrainingError(f"--resume {args.resume}: holds no packs (*.safetensors)")
        if read := read_packs(args.resume or packs, checkpoints):
            steps = ", ".join(f"{name} at step {state.step}" for name, state in read.items())
            print(f"goes on from {args.resume or packs}: {steps}")
        if args.dry_run:
            prepare(device)
            print("\n".join(measure(bench, names)))
            return
        before = {name: read_state(bench.path(name)) for name in names}
        unfinished = [name for name, state in before.items() if state is None or not state.finished]
        check_count(unfinished)

        def pack() -> list[Path]:
            return write_packs(checkpoints, packs, unfinished)

        end = math.inf if args.minutes is None else started + 60 * args.minutes - _ENDING
        jobs = args.jobs or _JOBS[device.type]
        try:
            failed = lanes.train_side_by_side(bench, names, end, jobs, args.last_run, args.compile, pack)
        finally:
            files = pack()
        _report(names, {name: read_state(bench.path(name)) for name in names}, files, time.time() - started)
    except (TrainingError, FileNotFoundError, ValueError) as error:
        fail(str(error), 1, _COMMAND)
    for name, reason in failed.items():
        print(f"w2sd_video.{_COMMAND}: {name} failed: {reason}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _features(names: list[str]):  # type: ignore[no-untyped-def]
    """Return what finds the features of real pictures, where a stage needs it."""
    if not any(name.startswith("probe") for name in names):
        return None
    from w2sd_video.metrics.efficientnet import features_of_pictures

    return features_of_pictures


def _report(names, states, files, seconds: float) -> None:  # type: ignore[no-untyped-def]
    """Say how far each stage is, and what was written."""
    from w2sd_video.miniatures.learning.stage_list import STAGES

    for name in names:
        state = states[name]
        where = "not begun" if state is None else f"step {state.step} of {STAGES[name].steps}"
        done = ", finished" if state is not None and state.finished else ""
        facts = f" {state.facts}" if state is not None and state.facts else ""
        print(f"{name:24}{where}{done}{facts}")
    for file in files:
        print(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    print(f"in {seconds:.0f} s")


if __name__ == "__main__":
    main()
