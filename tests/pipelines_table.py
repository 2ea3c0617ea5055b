"""Write docs/reference/pipelines.md: which pipelines of diffusers are reflected, tried on tiny random models.

    python tests/pipelines_table.py

Each is run five times: as it is, with reflection off, with a strength of next to nothing, without a gap and reflected.
Where no tiny model is known, the table says what the class alone tells.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import signal
import sys
import traceback
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import torch
import transformers
from helpers import NOTHING
from replay import denoisers_of
from systems import SYSTEMS
from tiny import parts
from tiny.variants import build

from w2sd_video import Branch, reflection
from w2sd_video.scheduler_levels import known_schedulers
from w2sd_video.writing import write_whole

OUT = Path(__file__).parent.parent / "docs" / "reference" / "pipelines.md"
STRONG, WEAK = Branch(guidance_scale=4.0), Branch(guidance_scale=1.0)


class Row(NamedTuple):
    """What the table says of a pipeline."""

    status: str
    remark: str


def pipelines() -> dict[str, type]:
    """Return every pipeline class of diffusers by its name, outputs and loaders by task left out."""
    found = {}
    for name in dir(diffusers.pipelines):
        if "Pipeline" in name and not name.startswith("AutoPipeline") and "Output" not in name:
            cls = getattr(diffusers.pipelines, name)
            if inspect.isclass(cls) and name not in ("DiffusionPipeline", "StableDiffusionMixin"):
                found[name] = cls
    return found


def run(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    """Return what a pipeline makes of one seed: latents where it gives them."""
    taken = inspect.signature(type(pipe).__call__).parameters
    extra = {"generator": torch.Generator().manual_seed(7), "output_type": "latent"}
    torch.manual_seed(0)
    result = pipe(**{name: value for name, value in extra.items() if name in taken} | call)
    result = next(iter(result.values())) if hasattr(result, "values") else result
    result = result[0] if isinstance(result, (list, tuple)) and isinstance(result[0], torch.Tensor) else result
    return result if isinstance(result, torch.Tensor) else torch.tensor(parts.pixels(result))


def tried(name: str) -> Row:
    """Try a pipeline, with half a minute of processor time, or tell from its class why it is not."""
    signal.signal(signal.SIGVTALRM, too_slow)
    signal.setitimer(signal.ITIMER_VIRTUAL, 30)
    told_by_class = told(getattr(diffusers.pipelines, name))
    try:
        pipe, call = build(name)
        stock = run(pipe, call)
        if not stock.isfinite().all() or not torch.equal(stock, run(pipe, call)):
            return Row("not tried", "its tiny model gives nothing finite, or something else each time")
        return reflected(pipe, call, stock)
    except LookupError as error:
        return Row("not tried", told_by_class or str(error.args[0]))
    except Exception as error:  # what was put together by guess may raise anything, which is no finding
        # Names that are missing are those of what diffusers imports only where it is installed.
        why = "needs a package that is not installed" if type(error) is NameError else "its tiny model does not run"
        return Row("not tried", told_by_class or f"{why}: {short(error)}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def reflected(pipe: Any, call: dict[str, Any], stock: torch.Tensor, **options: Any) -> Row:
    """Say what reflection does to a pipeline that runs; one that is refused for its edits is tried with them undone."""
    try:
        for off in ({"reflection_steps": 0}, {"strength": NOTHING}):
            with reflection(pipe, strong=Branch(), weak=Branch(), **off, **options):
                if not torch.equal(run(pipe, call), stock):
                    return Row("wrong", f"with {off} the result is not the stock pipeline's")
        with reflection(pipe, strong=Branch(), weak=Branch(), inversion="current", **options):
            if (run(pipe, call) - stock).double().norm() > 1e-3 * stock.double().norm():
                return Row("wrong", "with no gap between strong and weak the result is not the stock pipeline's")
        remark = ""
        try:
            with reflection(pipe, strong=STRONG, weak=WEAK, **options) as done:
                result = run(pipe, call)
        except ValueError as error:
            remark = short(error) if is_ours(error) else f"a branch with a guidance scale fails: {short(error)}"
            with reflection(pipe, strong=Branch(), weak=Branch(weights=other_weights(pipe)), **options) as done:
                result = run(pipe, call)
    except TimeoutError:
        raise
    except Exception as error:
        if "undo_edits=True" in str(error) and reflected(pipe, call, stock, undo_edits=True).status == "reflected":
            return Row("refused", f"{short(error)}; reflected with `undo_edits=True`")
        return (
            Row("refused", short(error)) if is_ours(error) else Row("fails", f"{type(error).__name__}: {short(error)}")
        )
    if not result.isfinite().all() or torch.equal(result, stock) or not done.reflected_steps:
        return Row("wrong", "reflected it gives nothing new, or nothing finite")
    evaluations = "guidance is an argument of the network, or there is none" if done.nfe["base"] == done.steps else ""
    return Row("reflected", remark or evaluations)


def other_weights(pipe: Any) -> Any:
    """Return a second denoiser, a pair of them for a model of two stages."""
    seconds = []
    for denoiser in denoisers_of(pipe).values():
        second = copy.deepcopy(denoiser)
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.mul_(1.1)
        seconds.append(second)
    return seconds[0] if len(seconds) == 1 else tuple(seconds)


def told(cls: type) -> str:
    """Return what a class tells without being run, if it rules reflection out."""
    module = cls.__module__
    if "dummy" in module:
        return "needs a package that is not installed"
    if any(word in module for word in ("audio", "ace_step", "musicldm", "spectrogram")):
        return "makes audio"
    source = inspect.getsource(sys.modules[module])
    if "scheduler.step(" not in source:
        return "no loop over `scheduler.step`"
    if re.search(r"copy\.deepcopy\(self\.scheduler\)", source):
        return "several latents walk side by side, each with a copy of the scheduler (joint audio and video)"
    wanted = inspect.signature(cls.__init__).parameters
    if not {"transformer", "unet", "transformer_2"} & set(wanted):
        return "no denoiser named `transformer` or `unet`"
    schedulers = re.findall(r"\w+Schedulers?\b", str(wanted["scheduler"].annotation)) if "scheduler" in wanted else []
    known = {*known_schedulers(), "KarrasDiffusionSchedulers"}
    if schedulers and not known & set(schedulers) and "SchedulerMixin" not in schedulers:
        return f"its scheduler, {schedulers[0]}, is none whose noise levels are known"
    return ""


def is_ours(error: BaseException) -> bool:
    """Return whether the plugin raised an error, and not a pipeline inside it."""
    return "w2sd_video" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts


def short(error: BaseException) -> str:
    """Return the first clause of an error, fit for a cell."""
    words = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"\. |; ", words)[0].replace("|", "/")[:200]


def too_slow(*_: Any) -> None:
    raise TimeoutError("it takes more than half a minute")


def quiet() -> None:
    """Keep the libraries' notes out of what a worker prints."""
    warnings.filterwarnings("ignore")
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def main() -> None:
    """Try all that are named, or all there are, and write the table of these."""
    found = pipelines()
    names = [name for name in found if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    with ProcessPoolExecutor(initializer=quiet) as pool:
        rows = dict(zip(names, pool.map(tried, names), strict=True))
    for name, row in rows.items():
        print(name, *row, sep=" · ")
    if not sys.argv[1:]:
        write_whole(OUT, table(rows))


INTRODUCTION = """# Which pipelines are reflected

`python tests/pipelines_table.py` wrote this file. It goes through every pipeline class of diffusers {version}, puts
together a tiny random model of those it can, and runs it as it is, with `reflection_steps=0`, with a strength of
1e-300, whose displacement rounds to nothing, with no gap between strong and weak, and reflected. Random weights say
that the plugin works with a pipeline, nothing about what it does to the pictures.

- **reflected**: with either kind of off the result was the stock pipeline's, bit for bit, and without a gap up to
  rounding; reflected, by guidance 4 over 1, it was finite and another. Where a branch cannot set the guidance scale
  there, second weights were the gap.
- **refused**: the plugin said why, before or while sampling; where that is for edits of the latents, `undo_edits=True`
  was tried too.
- **fails**: the pipeline itself broke in the longer loop.
- **not tried**: what its class tells, or what was missing for a try.

A pipeline with its own scheduler was tried; [others can take its place](../guide/own-script.md#good-to-know). The
suite in `tests/driver/test_systems.py` goes further for {systems} systems: it compares each with a plain loop, and
every gap with a pipeline set up that way by hand.

{counts}

| pipeline | | remark |
|---|---|---|
"""


def table(rows: dict[str, Row]) -> str:
    """Return the page."""
    found = Counter(row.status for row in rows.values())
    counts = ", ".join(
        f"{found[status]} {status}"
        for status in ("reflected", "refused", "fails", "wrong", "not tried")
        if found[status]
    )
    lines = [f"| {name} | {row.status} | {remark(name, row)} |" for name, row in sorted(rows.items())]
    page = INTRODUCTION.format(
        version=diffusers.__version__, systems=len(SYSTEMS), counts=f"Of {len(rows)} classes: {counts}."
    )
    return page + "\n".join(lines) + "\n"


def remark(name: str, row: Row) -> str:
    """Return a remark without the name that stands beside it, and whether the class is deprecated."""
    words = row.remark.replace(f"this call of {name}", "it").replace(f"{name} ", "it ").replace("*", "\\*")
    is_deprecated = ".deprecated." in getattr(diffusers.pipelines, name).__module__
    return "; ".join(part for part in (words, "deprecated in diffusers" if is_deprecated else "") if part)


if __name__ == "__main__":
    main()
