"""All stages of the training, what they need, and how they share the time and the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from w2sd_video.messages import suggest
from w2sd_video.miniatures.learning import fashion_stages, scene_stages
from w2sd_video.miniatures.learning.bench import Bench
from w2sd_video.miniatures.learning.stage_loop import Task

MakeTask = Callable[[Bench, int], Task]
"""From a bench and a batch size on a GPU to what is trained."""


@dataclass(frozen=True)
class Stage:
    """A network to be trained.

    Attributes:
        pack: the file it is packed into, as `group_pack`; the group is what `--stage` knows.
        task: makes what is trained.
        share: of the time, in seconds of a process that shares a GPU with three others, for the whole stage.
        steps: planned.
        batch: samples a step on a GPU; on a CPU it is an eighth.
        needs: stages that have to be finished first.
        finishes: whether it is finished in the run that begins it, because others build on it.
        chain: stages of one chain run one after the other in one process.
    """

    pack: str
    task: MakeTask
    share: float
    steps: int
    batch: int
    needs: tuple[str, ...] = ()
    finishes: bool = False
    chain: str = ""

    @property
    def group(self) -> str:
        """What `--stage` calls the stages that are trained together."""
        return self.pack.split("-")[0]


_TEXT, _PICTURES, _VIDEOS = "scenes-t5", "scenes-image-vae", "scenes-video-vae"
_s, _f = scene_stages, fashion_stages
SEEDS = (2, 3)
"""Further seeds of the training of a pair."""

_PIXART = Stage("scenes-pixart", _s.pixart_task, 300, 12000, 512, (_TEXT, _PICTURES), chain="pixart")
_TWO = {
    name: (second, Stage("fashion-dit", partial(_f.two_classes_task, second=second), 100, 5000, 256, ("fashion-vae",)))
    for name, second in (("strong", 2500), ("weak", 500))
}
"""The pictures of the second class that a network of the unbalanced pair is trained on, and its stage."""

STAGES: dict[str, Stage] = {
    "scenes-t5": Stage("scenes-base", _s.t5_task, 12, 800, 256, finishes=True, chain="text"),
    "scenes-clip": Stage("scenes-base", _s.clip_task, 12, 800, 256, finishes=True, chain="text"),
    "scenes-judge": Stage("scenes-base", _s.judge_task, 60, 3000, 256, finishes=True, chain="judges"),
    "scenes-picture-judge": Stage("scenes-base", _s.picture_judge_task, 40, 3000, 512, finishes=True, chain="judges"),
    "scenes-image-vae": Stage("scenes-base", _s.image_vae_task, 110, 4000, 256, finishes=True, chain="image-vae"),
    "scenes-video-vae": Stage("scenes-base", _s.video_vae_task, 150, 2500, 32, finishes=True, chain="video-vae"),
    "scenes-pixart": _PIXART,
    "scenes-pixart-narrow": Stage(
        "scenes-pixart", partial(_s.pixart_task, seed=4, width=64), 130, 12000, 512, (_TEXT, _PICTURES), chain="narrow"
    ),
    "scenes-pixart-half": Stage(
        "scenes-pixart",
        partial(_s.pixart_task, seed=5, half_of_colours=True),
        150,
        8000,
        512,
        (_TEXT, _PICTURES),
        chain="half",
    ),
    "scenes-unet": Stage(
        "scenes-animatediff",
        _s.unet_task,
        220,
        8000,
        512,
        ("scenes-clip", _PICTURES),
        finishes=True,
        chain="animatediff",
    ),
    "scenes-lora": Stage("scenes-animatediff", _s.lora_task, 25, 800, 256, ("scenes-unet",), True, chain="animatediff"),
    "scenes-motion": Stage("scenes-animatediff", _s.motion_task, 330, 4000, 64, ("scenes-unet",), chain="animatediff"),
    "scenes-cogvideox": Stage("scenes-cogvideox", _s.cogvideox_task, 560, 12000, 128, (_TEXT, _VIDEOS), chain="cog"),
    "scenes-wan": Stage("scenes-wan", _s.wan_task, 560, 12000, 128, (_TEXT, _VIDEOS), chain="wan"),
    "scenes-dit-moe": Stage("scenes-dit_moe", _s.dit_moe_task, 180, 6000, 512, (_PICTURES,), chain="dit_moe"),
    **{
        f"seeds-pixart-{seed}": replace(
            _PIXART, pack="seeds-pixart", task=partial(_s.pixart_task, seed=seed), chain=f"seed {seed}"
        )
        for seed in SEEDS
    },
    "fashion-vae": Stage("fashion-dit", _f.vae_task, 60, 3000, 256, finishes=True, chain="fashion"),
    "fashion-dit": Stage("fashion-dit", _f.dit_task, 300, 12000, 512, ("fashion-vae",), chain="fashion"),
    **{f"fashion-two-{name}": replace(stage, chain="two") for name, (_, stage) in _TWO.items()},
    **{
        f"seeds-fashion-two-{name}-{seed}": replace(
            stage,
            pack="seeds-fashion",
            task=partial(_f.two_classes_task, second=second, seed=22 + seed),
            chain=f"two, seed {seed}",
        )
        for seed in SEEDS
        for name, (second, stage) in _TWO.items()
    },
    "probe-fashion": Stage("probe-fashion", _f.judge_task, 40, 600, 2048, finishes=True, chain="probe"),
}
"""By their names, those that others need first."""

GROUPS = tuple(dict.fromkeys(stage.group for stage in STAGES.values()))


def chosen(names: Iterable[str]) -> list[str]:
    """Return the stages that names mean, stages or groups, and all that these need, in the order of `STAGES`.

    Raises:
        ValueError: a name that is neither.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in STAGES and name not in GROUPS:
            raise ValueError(f"unknown stage {name!r}; {suggest(name, [*GROUPS, *STAGES])}")
        wanted |= {stage for stage in STAGES if name in (stage, STAGES[stage].group)}
    while more := {need for stage in wanted for need in STAGES[stage].needs} - wanted:
        wanted |= more
    return [stage for stage in STAGES if stage in wanted]
