"""What calibration found, in Markdown: a table of the noise levels, and a verdict in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w2sd_video.calibration import Calibration, LevelResult, Tilt
from w2sd_video.describe import pair_in_words
from w2sd_video.ideal import CorrectedCosine
from w2sd_video.settings import RenderConfig


def report(
    found: Calibration,
    tilts: Sequence[Tilt],
    cosines: Sequence[CorrectedCosine],
    config: RenderConfig,
    counted: Mapping[str, Any],
) -> str:
    """Return the tables and the verdict in Markdown.

    Args:
        found: of the pair.
        tilts: over all levels, and of each; or nothing.
        cosines: of each level; or nothing.
        config: names the pair.
        counted: the numbers of "clips" and "draws".
    """
    rows = [
        pair_in_words(config),
        f"{config.model.pretrained}: {counted['clips']} clips, {counted['draws']} draws of noise, {found.total} steps",
        "",
        "| step | log SNR | error of strong | of weak | gap | strength γ* (95 %) | gain at γ* | gain at 1 "
        "| cosine, at least | verdict |" + (" tilt (95 %) |" if tilts else ""),
        "|---|---|---|---|---|---|---|---|---|---|" + ("---|" if tilts else ""),
    ]
    rows += [_row(level) for level in found.levels]
    for number, one in enumerate(tilts[1:]):
        rows[5 + number] += f" {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}) |"
    if left_out := found.total - len(found.levels):
        rows += ["", f"Left out: {left_out} step(s) without signal, where no prediction can be read as noise."]
    if cosines:
        rows += ["", *_cosines(found, cosines)]
    return "\n".join([*rows, "", *verdict(found), *(tilt_in_words(one) for one in tilts[:1])])


def _row(level: LevelResult) -> str:
    return (
        f"| {level.step} | {level.log_snr:.2f} | {level.strong_error:.4f} | {level.weak_error:.4f} | {level.gap:.5f} "
        f"| {level.strength:.2f} ({level.low:.2f} to {level.high:.2f}) | {level.gain:+.2%} | {level.gain_at_one:+.2%} "
        f"| {level.cosine:+.3f} | {level.verdict} |"
    )


def _cosines(found: Calibration, cosines: Sequence[CorrectedCosine]) -> list[str]:
    """Return the table of the cosines with the ideal prediction, as a bank of clips tells it."""
    rows = [
        "| step | log SNR | distance to the ideal, share of strong's error, at least | effective clips | fit "
        "| cosine, at least | cosine without the noise's own variance (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for level, one in zip(found.levels, cosines, strict=True):
        rows.append(
            f"| {level.step} | {level.log_snr:.2f} | {one.distance:.1%} | {one.effective:.1f} | {one.fit:.2f} "
            f"| {level.cosine:+.3f} | {'' if one.is_estimate else 'at most '}{one.value:+.3f} "
            f"({one.low:+.3f} to {one.high:+.3f}) |"
        )
    return rows


def tilt_in_words(one: Tilt) -> str:
    """Say what moving the samples along the gap does to their likeness to the real clips."""
    said = "does neither, as far as can be told"
    if one.low > 0:
        said = "makes them more like real ones"
    elif one.high < 0:
        said = "makes them less like real ones"
    return f"- Tilt: {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}): moving base's samples along the gap {said}."


def verdict(found: Calibration) -> list[str]:
    """Say in words where the pair helps, and what to set."""
    lines = []
    for kind in ("helps", "does nothing", "points the wrong way"):
        steps = [str(level.step) for level in found.levels if level.verdict == kind]
        if steps:
            count = f"{len(steps)} of {len(found.levels)} noise levels"
            lines.append(f"- By its denoising error the pair {kind} at {count}: {', '.join(steps)}.")
    value, low, high = found.gain_at_one
    lines.append(
        f"- Gain in denoising error, mean over the levels: {found.gain:+.2%} at the strengths of the schedule, "
        f"{value:+.2%} ({low:+.2%} to {high:+.2%}) at strength 1 everywhere."
    )
    if found.window is None:
        lines.append("- No constant strength lowers the denoising error.")
    else:
        start, stop = found.window
        window = f"--reflection-steps '[{start:.2f}, {stop:.2f}]'"
        lines.append(f"- The constant strength that lowers it most: {window} --strength {found.constant:.2f}")
    return lines
