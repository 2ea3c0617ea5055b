"""What a run leaves: a few files of weights in half precision, to go on from elsewhere and to make pipelines of.

A pack holds the moving averages of its stages, of a stage with a weak model also the early one. What does not travel is
the state of the optimizer and the weights between two averages: a stage that goes on from a pack goes on from its
average, with the optimizer's moments at nothing. Within one folder nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from w2sd_video.miniatures.learning.bench import HELPER
from w2sd_video.miniatures.learning.stage_list import STAGES
from w2sd_video.miniatures.learning.stage_loop import State, TrainingError, read_state, write_state
from w2sd_video.writing import whole

MOST_BYTES = 16 * 2**20
"""Of a file."""
MOST_FILES = 8
_EARLY = "@early"


def check_count(stages: Iterable[str]) -> None:
    """Refuse stages whose packs are more files than a run may leave.

    Raises:
        TrainingError: they are.
    """
    count = len({STAGES[stage].pack for stage in stages})
    if count > MOST_FILES:
        raise TrainingError(f"{count} packs, but a run may leave {MOST_FILES} files; train fewer groups at once")


def write_packs(stages_folder: Path, folder: Path, stages: Iterable[str]) -> list[Path]:
    """Write the packs that hold some stages, each whole or not at all.

    Args:
        stages_folder: of the checkpoints.
        folder: for the packs.
        stages: those whose packs are written, with all other stages of the same packs.

    Returns:
        The files.

    Raises:
        TrainingError: more files, or larger ones, than a run may leave; nothing was written.
    """
    stages = list(stages)
    check_count(stages)
    names = dict.fromkeys(STAGES[stage].pack for stage in stages)
    contents = {}
    for name in names:
        states = {
            stage: state
            for stage in STAGES
            if STAGES[stage].pack == name and (state := read_state(stages_folder / f"{stage}.pt")) is not None
        }
        if states:
            contents[name] = _content(states)
    sizes = {name: sum(value.nbytes for value in tensors.values()) for name, (tensors, _) in contents.items()}
    if too_large := [name for name, size in sizes.items() if size > MOST_BYTES - 2**17]:
        raise TrainingError(f"the pack {too_large[0]} has {sizes[too_large[0]] / 2**20:.1f} MiB; a file may have 16")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (tensors, about) in contents.items():
        paths.append(folder / f"{name}.safetensors")
        with whole(paths[-1]) as part:
            save_file(tensors, part, {"stages": json.dumps(about)})
        paths[-1].chmod(0o644)
    return paths


def _content(states: dict[str, State]) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    tensors, about = {}, {}
    for stage, state in states.items():
        about[stage] = {name: getattr(state, name) for name in ("step", "seconds", "finished", "facts")}
        for where, weights in (("", state.average), (_EARLY, state.early or {})):
            for key, value in weights.items():
                if not (state.finished and key.startswith(HELPER)):
                    tensors[f"{stage}{where}/{key}"] = value.half().contiguous()
    return tensors, about


def read_packs(folder: Path, stages_folder: Path) -> dict[str, State]:
    """Make checkpoints of the packs in a folder, of stages that have none that is as far.

    Returns:
        The states that were made.

    Raises:
        TrainingError: a pack that is damaged, or of stages that are not known.
    """
    made = {}
    for path in sorted(folder.glob("*.safetensors")):
        for stage, state in read_pack(path).items():
            target = stages_folder / f"{stage}.pt"
            there = read_state(target)
            if there is None or (there.step, there.finished) < (state.step, state.finished):
                write_state(target, state)
                made[stage] = state
    return made


def read_pack(path: Path) -> dict[str, State]:
    """Return the states of a pack by their stages, their averages in float32.

    Raises:
        TrainingError: see `read_packs`.
    """
    try:
        with safe_open(path, "pt") as pack:
            about = json.loads((pack.metadata() or {})["stages"])
            tensors = {key: pack.get_tensor(key) for key in pack.keys()}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(f"{path} is no pack of the training, or damaged: {error}") from error
    if unknown := sorted(about.keys() - STAGES.keys()):
        raise TrainingError(f"{path} holds the stage {unknown[0]}, which is not known here")
    states = {}
    for stage, known in about.items():
        average, early = (
            {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == name}
            for name in (stage, stage + _EARLY)
        )
        states[stage] = State({key: value.float() for key, value in average.items()}, early=early or None, **known)
    return states
