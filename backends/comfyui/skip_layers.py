"""A transformer of ComfyUI without some of its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy.patcher_extension import WrappersMP

from w2sd_video.backends.comfyui.pairs import Model, named


def without_blocks(model: Model, double_blocks: Iterable[float], single_blocks: Iterable[float]) -> Model:
    """Return a MODEL that leaves out blocks of its network, which it shares with the given one.

    Raises:
        ValueError: no block, or numbers that are none of blocks; and when it is evaluated, blocks that there are not.
    """
    blocks = {("double_block", number) for number in double_blocks} | {
        ("single_block", number) for number in single_blocks
    }
    if not blocks:
        raise ValueError("no block is skipped; name one at least")
    if wrong := sorted(number for _, number in blocks if number < 0 or number != int(number)):
        raise ValueError(f"blocks are counted in whole numbers from 0, got {wrong[0]:g}")
    skipped: set[tuple[str, float]] = set()

    def skipping(block: tuple[str, float]) -> Any:
        def skip(args: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
            skipped.add(block)
            return args  # what goes in comes out

        return skip

    def checked(executor: Any, *args: Any, **kwargs: Any) -> Any:
        skipped.clear()
        output = executor(*args, **kwargs)
        if missed := sorted(blocks - skipped):
            raise ValueError(
                f"{named(model)} has no {', '.join(f'{kind} {number:g}' for kind, number in missed)} that can be "
                "skipped; see how many blocks it has, and of which kind"
            )
        return output

    shortened = model.clone()
    for kind, number in blocks:
        shortened.set_model_patch_replace(skipping((kind, number)), "dit", kind, int(number))
    shortened.add_wrapper(WrappersMP.APPLY_MODEL, checked)
    return shortened
