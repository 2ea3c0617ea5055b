"""Measure a miniature's arms: ``python -m w2sd_video.evaluate --config miniature-cogvideox``.

Every arm samples the same prompts from the same noise: the weak and the strong model alone, the strong one with as many
network evaluations as W2SD and with AutoGuidance, W2SD with each inversion, and S2WD: the same with strong and weak
swapped. Options that are not listed here are those of ``w2sd_video.render`` and change the configuration (``--steps
16``). An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from tqdm import tqdm

from w2sd_video.clips import known_prompts
from w2sd_video.config import DEFAULT_CONFIG, fail, parse
from w2sd_video.plan import check_plan, evaluations, panels
from w2sd_video.render import LoadError, load, quiet, sample_clips
from w2sd_video.sampler import WeakInversion
from w2sd_video.settings import ConfigError, RenderConfig
from w2sd_video.sources import MINIATURE
from w2sd_video.video import write_whole

PROMPTS = 256
"""Prompts unless told, or all of them where there are fewer."""
EQUAL = "strong, NFE of W2SD"
"""The arm that the others are compared with."""
REFERENCE_SEEDS = 8
"""Real clips a prompt that the Fréchet distance is measured against; their seeds are no sample's."""


@dataclass(frozen=True)
class Scores:
    """What was measured of one arm and one seed.

    Attributes:
        right: whether shape, colour and direction are all as the prompt says, (prompts,) of bool.
        comets: whether the trail is of the style that the LoRA was trained on, (prompts,) of bool.
        features: of the classifier, (prompts, dimensions).
        nfe: network evaluations a clip.
        seconds: for a clip.
    """

    right: np.ndarray
    comets: np.ndarray
    features: np.ndarray
    nfe: int
    seconds: float


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation that a command line names, print its table and write it beside the scores."""
    options, rest = _options().parse_known_args(sys.argv[1:] if argv is None else argv)
    try:
        config = parse(["a red circle moving left", "--config", options.config, *rest], command="evaluate").config
        check_plan(config)
        if not config.model.pretrained.startswith(MINIATURE):
            raise ConfigError(f"config {options.config}: only miniatures can be measured, for they have a classifier")
        if config.inputs:
            raise ConfigError(
                f"inputs.{next(iter(config.inputs))}: a model with inputs cannot be measured, for each "
                "prompt would need its own"
            )
        there_are = len(known_prompts(config))
        if options.number_of_prompts is None:
            options.number_of_prompts = min(PROMPTS, there_are)
        for name, most in (("number_of_prompts", there_are), ("number_of_seeds", 1000), ("batch", 1024)):
            if not 1 <= getattr(options, name) <= most:
                raise ConfigError(f"{name} {getattr(options, name)}: must be from 1 to {most}")
        folder = _folder(Path(options.folder or f"runs/{options.config}"), config, options)
        table = evaluate(config, folder, options.number_of_prompts, options.number_of_seeds, options.batch)
    except ConfigError as error:
        fail(str(error), command="evaluate")
    except LoadError as error:
        fail(str(error), code=1, command="evaluate")
    write_whole(folder / "table.md", table)
    print(table)
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m w2sd_video.evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help="configuration of a miniature: its name or a file")
    parser.add_argument("--number-of-prompts", type=int, help=f"distinct prompts; {PROMPTS}, or all, unless told")
    parser.add_argument("--number-of-seeds", type=int, default=3, help="clips a prompt and an arm")
    parser.add_argument("--batch", type=int, default=64, help="clips sampled together")
    parser.add_argument("--folder", help="where scores and table are written; runs/CONFIG unless told")
    return parser


def arms(config: RenderConfig) -> dict[str, RenderConfig]:
    """Return the settings to be compared, by name; `config` is W2SD as it is configured."""
    alone = panels(replace(config, compare=True))
    reflected = {f"W2SD, {inversion}": replace(config, inversion=inversion) for inversion in get_args(WeakInversion)}
    cost = sum(evaluations(reflected["W2SD, paper"]).values())
    a_step = evaluations(alone["strong"])["base"] / config.steps
    longer = replace(alone["strong"], steps=round(cost / a_step))
    return {
        "weak": alone["weak"],
        "strong": alone["strong"],
        EQUAL: longer,
        "AutoGuidance": replace(alone["strong"], weak=alone["weak"].base, autoguidance=1.0),
        **reflected,
        "S2WD": replace(config, strong=config.weak, weak=config.strong),
    }


def evaluate(config: RenderConfig, folder: Path, n_prompts: int, n_seeds: int, batch: int) -> str:
    """Measure every arm that is not measured yet, and return the table in Markdown."""
    known = known_prompts(config)
    prompts = [known[i] for i in np.random.default_rng(0).permutation(len(known))[:n_prompts]]
    pipe = None
    scores: dict[str, list[Scores]] = {}
    wanted = [(name, seed) for name in arms(config) for seed in range(n_seeds)]
    for name, seed in tqdm(wanted, desc="arms x seeds"):
        file = folder / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}.npz"
        if not file.exists():
            if pipe is None:
                with quiet():
                    pipe = load(config)
                pipe.set_progress_bar_config(disable=True)
            _save(file, measure(pipe, arms(config)[name], prompts, seed, batch))
        scores.setdefault(name, []).append(_read(file))
    reference = real_features(config, prompts * REFERENCE_SEEDS, first_seed=10**6)
    floor = real_features(config, prompts * n_seeds, first_seed=2 * 10**6)
    return _table(config, scores, reference, floor, n_prompts, n_seeds)


def real_features(config: RenderConfig, prompts: Sequence[str], first_seed: int) -> np.ndarray:
    """Return the features of clips, or pictures, as the model should make them; with a LoRA those of its style."""
    from w2sd_video.miniatures import classifier, world

    seeds, trail = range(first_seed, first_seed + len(prompts)), world.COMET if config.model.lora else world.TRAIL
    return classifier.features(world.clips(prompts, seeds, config.frames or 1, trail))


def measure(pipe: Any, config: RenderConfig, prompts: Sequence[str], seed: int, batch: int) -> Scores:
    """Sample every prompt once and score the clips; a clip's noise follows from its prompt's place and the seed."""
    from w2sd_video.miniatures import classifier, world

    started = time.perf_counter()
    clips: list[np.ndarray] = []
    nfe: dict[str, int] = {}
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        seeds = [seed * 10**4 + start + k for k in range(len(part))]
        sampled, nfe = sample_clips(pipe, config, part, seeds)
        clips.append(sampled)
    seconds = (time.perf_counter() - started) / len(prompts)
    videos = np.concatenate(clips)
    wanted = [world.parse(prompt) for prompt in prompts]
    right = [
        all(getattr(one, head) == getattr(other, head) for head in classifier.HEADS)
        for one, other in zip(wanted, classifier.classify(videos), strict=True)
    ]
    features = classifier.features(videos)
    return Scores(np.array(right), classifier.comets(videos), features, sum(nfe.values()), seconds)


def _table(
    config: RenderConfig,
    scores: dict[str, list[Scores]],
    reference: np.ndarray,
    floor: np.ndarray,
    n_prompts: int,
    n_seeds: int,
) -> str:
    from w2sd_video.miniatures.classifier import frechet_distance

    rows = [
        f"{config.model.pretrained}, {n_prompts} prompts x {n_seeds} seeds, {config.steps} steps, "
        f"base guidance {config.base.guidance_scale:g}",
        "",
        "| arm | NFE | joint adherence | against equal NFE | Fréchet distance | seconds a clip |",
        "|---|---|---|---|---|---|",
    ]
    if styled := bool(config.model.lora):
        rows[-2:] = [rows[-2] + " comets |", rows[-1] + "---|"]
    rival = _shares(scores[EQUAL])
    for name, runs in scores.items():
        shares = _shares(runs)
        distances = [frechet_distance(np.concatenate(part), reference) for part in _left_out(runs)]
        distance = frechet_distance(np.concatenate([run.features for run in runs]), reference)
        seconds = np.mean([run.seconds for run in runs])
        difference = "" if name == EQUAL else f"{(shares - rival).mean():+.3f} ± {_error(shares - rival):.3f}"
        rows.append(
            f"| {name} | {runs[0].nfe} | {shares.mean():.3f} ± {_error(shares):.3f} | {difference} "
            f"| {distance:.1f} ± {_jackknife(distances):.1f} | {seconds:.3f} |"
            + (f" {_shares(runs, 'comets').mean():.3f} |" if styled else "")
        )
    rows += [
        f"| real clips | | | | {frechet_distance(floor, reference):.1f} | |" + (" |" if styled else ""),
        "",
        "±: standard error over prompts (adherence; its difference is paired), jackknife over seeds (distance).",
    ]
    return "\n".join(rows)


def _shares(runs: list[Scores], of: Literal["right", "comets"] = "right") -> np.ndarray:
    """Return for each prompt the share of seeds that are right, or comets."""
    return np.mean([getattr(run, of) for run in runs], axis=0)


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _left_out(runs: list[Scores]) -> list[list[np.ndarray]]:
    """Return the features without each seed in turn."""
    if len(runs) < 2:
        return []
    return [[run.features for run in runs if run is not left] for left in runs]


def _jackknife(values: list[float]) -> float:
    """Return the jackknife standard error of a statistic from its values without each part in turn."""
    if not values:
        return float("nan")
    spread = np.array(values) - np.mean(values)
    return float(np.sqrt((len(values) - 1) / len(values) * (spread**2).sum()))


def _folder(folder: Path, config: RenderConfig, options: argparse.Namespace) -> Path:
    """Return the folder of this evaluation, new or to go on with; refuse another evaluation's."""
    settings = {"config": asdict(config), "prompts": options.number_of_prompts}
    settings["config"] |= {"output": None, "prompts": None}
    settings = json.loads(json.dumps(settings))
    file = folder / "evaluation.json"
    try:
        if file.exists():
            if json.loads(file.read_text()) != settings:
                raise ConfigError(f"folder {folder}: holds an evaluation of other settings; name another with --folder")
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"folder {folder}: is not empty and holds no evaluation; name another with --folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(settings, indent=2))
    except OSError as error:
        raise ConfigError(f"folder {folder}: cannot be written: {error.strerror}") from error
    return folder


def _save(file: Path, scores: Scores) -> None:
    beside = file.with_name(f".{file.stem}.part.npz")
    np.savez(beside, **asdict(scores))
    os.replace(beside, file)


def _read(file: Path) -> Scores:
    with np.load(file) as kept:
        return Scores(kept["right"], kept["comets"], kept["features"], int(kept["nfe"]), float(kept["seconds"]))


if __name__ == "__main__":
    sys.exit(main())
