"""One line that turns reflection on in a script of the user's own: ``with reflection(pipe, strong=..., weak=...)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from w2sd_video.branch import Branch
from w2sd_video.driver.call import Run, walking
from w2sd_video.driver.parts import is_modular
from w2sd_video.driver.solvers import solver_of
from w2sd_video.driver.walk import Walk
from w2sd_video.gaps.swaps import swapped
from w2sd_video.reflection_settings import Inversion, Reading, Reflection, Role
from w2sd_video.reuse import Carried
from w2sd_video.strength import StrengthSchedule, as_strength
from w2sd_video.window import Steps

__all__ = ["Run", "reflection"]


@contextmanager
def reflection(
    pipe: Any,
    *,
    strong: Branch,
    weak: Branch,
    base: Branch | None = None,
    reflection_steps: Steps = None,
    strength: float | str | Path | StrengthSchedule = 1.0,
    rounds: int = 1,
    inversion: Inversion = "auto",
    iterations: int = 2,
    autoguidance: float | str | Path | StrengthSchedule = 0.0,
    span: int = 1,
    reading: Reading = "epsilon",
    reuse: int = 1,
    carried: Carried = "held",
    autoguidance_steps: Steps = None,
    autoguidance_gap: Literal["base", "strong"] = "base",
    grid: float = 1.0,
    solver: str | None = None,
    undo_edits: bool = False,
) -> Iterator[Run]:
    """Reflect every call of a diffusers pipeline inside the block (algorithm 1 of the paper).

    The pipeline's own loop runs, so its guidance, control, adapters, conditioning, offloading and callbacks go on
    working. Its parts are looked up at each call, so that what is replaced or loaded inside the block counts. Outside
    the calls, and for callbacks, scheduler and networks are stock, also for other pipelines that share them. After the
    block, also after an exception, the pipeline is what it was.

    A call keeps its networks to itself: a reflected call of another thread that uses one of them waits until it ends; a
    stock one goes on, past the branches. A second denoiser (``weights``) is not to be used elsewhere meanwhile.

    Args:
        pipe: any diffusers pipeline that loops over ``scheduler.step`` with a known scheduler; a modular one with a
            denoise loop of blocks, its components loaded; or one of DiffSynth-Studio (``backends.diffsynth``).
        strong: the setting that denoises in a reflection.
        weak: the setting that inverts.
        base: the setting of the step that counts; None is the pipeline's own.
        reflection_steps: λ, counted from the noisiest step; or a window (start, stop) of fractions; None for all
            steps but the last.
        strength: scale of the displacement; 1 is the paper's, and right for no pair in particular (`calibrate`). A
            ``StrengthSchedule``, or the name of its file, has one for each noise level.
        rounds: reflections that follow each other at each reflected step.
        inversion: where the weak prediction is made: "paper", "explicit", "current" or "implicit"; "auto" is "current"
            for flow matching and "paper" for others; "resample" makes none and adds noise instead, "resample-advanced"
            noise that is similar to the gap (``Reflection``).
        iterations: fixed-point iterations of "implicit".
        autoguidance: weight g of AutoGuidance on the steps that count: ``base + g * (base - weak)``. With
            ``reflection_steps=0`` it is AutoGuidance alone.
        span: how many steps a reflection goes down and back, in one move.
        reading: in which parametrisation a gap is taken, "epsilon", "sample" or "native" (``Reflection``).
        reuse: k: the gap is measured at every k-th step that wants it, and carried to those between at no cost.
        carried: how: "held" or "linear".
        autoguidance_steps: where AutoGuidance acts, like `reflection_steps`; None for all steps.
        autoguidance_gap: "base" or "strong": whose prediction weak's is taken from there.
        grid: ρ: timesteps that are denser at low noise above 1 (``Reflection``); 1 leaves them to the scheduler.
        solver: class of a scheduler of diffusers that takes the steps inside the block, with the noise levels of the
            pipeline's own; None leaves that in its place.
        undo_edits: whether a pipeline is reflected whose loop changes its latents after each step, as inpainting does
            that puts the kept part back, noised anew. What it makes of those of a reflection's turns is undone then:
            the reflection acts on the kept part too, which is put back after the step. Else it is refused.

    Yields:
        A ``Run``, filled in by each call of the pipeline.

    Raises:
        TypeError: no pipeline, no branches, a scheduler that is not known or cannot be reflected, a pipeline without
            a denoiser, or a modular one whose loop is not made of blocks.
        ValueError: a setting out of range, weights or LoRA that are not loaded, a second denoiser of another shape,
            experts, layers or side networks that the pipeline does not have, a cache of evaluations, a second denoiser
            without the adapters of the first; or, inside the block, a guidance scale or text that this pipeline cannot
            be given, or a reflected call inside another one that shares its network.
    """
    settings = Reflection(
        reflection_steps,
        as_strength(strength),
        rounds=rounds,
        inversion=inversion,
        iterations=iterations,
        autoguidance=as_strength(autoguidance),
        span=span,
        reading=reading,
        reuse=reuse,
        carried=carried,
        autoguidance_steps=autoguidance_steps,
        autoguidance_gap=autoguidance_gap,
        grid=grid,
    )
    branches: dict[Role, Branch] = {"base": Branch() if base is None else base, "strong": strong, "weak": weak}
    for role, branch in branches.items():
        if not isinstance(branch, Branch):
            raise TypeError(f"{role} must be a Branch, got {branch!r}")
    if isinstance(pipe, type) or not callable(pipe) or not (hasattr(pipe, "scheduler") or is_modular(pipe)):
        raise TypeError(f"pipe must be a diffusers pipeline that was loaded, got {pipe!r:.80}")
    if any(base.__module__.partition(".")[0] == "diffsynth" for base in type(pipe).__mro__):
        from w2sd_video.driver.diffsynth_call import reflecting

        with reflecting(pipe, branches, settings, solver) as run:
            yield run
        return
    is_loaded = getattr(pipe, "scheduler", None) is not None  # of a modular pipeline it may not be yet
    swaps = [(pipe, {"scheduler": solver_of(pipe, solver)})] if solver is not None and is_loaded else []
    with swapped(swaps), _walking(pipe, branches, settings, undo_edits) as run:
        yield run


def _walking(
    pipe: Any, branches: dict[Role, Branch], settings: Reflection, undo_edits: bool
) -> AbstractContextManager[Run]:
    """Return what leads the calls of a pipeline: a block of a modular one's denoise loop, a scheduler of others'."""
    if is_modular(pipe):
        from w2sd_video.driver.modular_call import walking_blocks  # modular pipelines of diffusers are slow to import

        return walking_blocks(pipe, branches, settings)
    return walking(pipe, branches, settings, partial(Walk, undoes_edits=undo_edits))
