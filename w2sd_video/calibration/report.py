"""What calibration found, in Markdown: a table of the noise levels, and a verdict in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from w2sd_video.calibration.gap import Calibration
from w2sd_video.calibration.ideal_prediction import CorrectedCosine
from w2sd_video.calibration.resampling import Estimate
from w2sd_video.markdown import markdown_table
from w2sd_video.settings.schema import RenderConfig
from w2sd_video.settings.words import pair_in_words
from w2sd_video.strength import StrengthSchedule
from w2sd_video.window import Window


@dataclass(frozen=True)
class Findings:
    """All that was found of a pair.

    Attributes:
        gap: what real clips say of the gap.
        cosines: of each level, where the ideal prediction was estimated.
        tilt: over all levels, where clips were sampled.
        tilts: of each level.
        balanced: the strength at which the tilt vanishes.
        strengths: the same at each level.
        tilt_at_one: what is left of the tilt at strength 1.
        reflection_steps: the window that the strength is for; None where it is for all steps.
    """

    gap: Calibration
    cosines: list[CorrectedCosine] = field(default_factory=list)
    tilt: Estimate | None = None
    tilts: list[Estimate] = field(default_factory=list)
    balanced: Estimate | None = None
    strengths: list[float] = field(default_factory=list)
    tilt_at_one: Estimate | None = None
    reflection_steps: Window | None = None

    @property
    def schedule(self) -> StrengthSchedule:
        """The strength at which each level's tilt vanishes, 0 if all in all it is not positive; γ* without samples."""
        if self.tilt is None:
            return self.gap.schedule
        strengths = self.strengths if self.tilt.low > 0 else [0.0] * len(self.strengths)
        return StrengthSchedule(self.gap.schedule.log_snr, tuple(strengths))

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON can hold it; `StrengthSchedule.read` takes it too."""
        findings = asdict(self)
        del findings["gap"]
        return self.gap.plain() | findings | self.schedule.plain()


def report(findings: Findings, config: RenderConfig, counts: Mapping[str, Any]) -> str:
    """Return the tables and the verdict in Markdown.

    Args:
        findings: of the pair.
        config: names the pair.
        counts: the numbers of "clips" and "draws".
    """
    calibration = findings.gap
    lines = [
        pair_in_words(config),
        f"{config.model.pretrained}: {counts['clips']} clips, {counts['draws']} draws of noise, "
        f"{calibration.total} steps",
        "",
        *_levels(findings),
    ]
    if left_out := calibration.total - len(calibration.levels):
        lines += ["", f"Left out: {left_out} step(s) without signal, where no prediction can be read as noise."]
    if findings.cosines:
        lines += ["", *_cosines(findings)]
    return "\n".join([*lines, "", *verdict(calibration), *tilt_in_words(findings)])


def _levels(findings: Findings) -> list[str]:
    """Return the table of the noise levels."""
    head = ["step", "log SNR", "error of strong", "of weak", "gap", "strength γ* (95 %)", "gain at γ*", "gain at 1"]
    head += ["cosine, at least", "verdict", *(["tilt (95 %)"] if findings.tilts else [])]
    rows = [
        [
            str(level.step),
            f"{level.log_snr:.2f}",
            f"{level.strong_error:.4f}",
            f"{level.weak_error:.4f}",
            f"{level.gap:.5f}",
            f"{level.strength:.2f} ({level.low:.2f} to {level.high:.2f})",
            f"{level.gain:+.2%}",
            f"{level.gain_at_one:+.2%}",
            f"{level.cosine:+.3f}",
            level.verdict,
            *map(_signed, findings.tilts[number : number + 1]),
        ]
        for number, level in enumerate(findings.gap.levels)
    ]
    return markdown_table(head, rows)


def _cosines(findings: Findings) -> list[str]:
    """Return the table of the cosines with the ideal prediction, as a bank of clips tells it."""
    head = ["step", "log SNR", "distance to the ideal, share of strong's error, at least", "effective clips", "fit"]
    head += ["cosine, at least", "cosine without the noise's own variance (95 %)"]
    rows = [
        [
            str(level.step),
            f"{level.log_snr:.2f}",
            f"{cosine.distance:.1%}",
            f"{cosine.effective:.1f}",
            f"{cosine.fit:.2f}",
            f"{level.cosine:+.3f}",
            f"{'' if cosine.is_estimate else 'at most '}{_signed(cosine)}",
        ]
        for level, cosine in zip(findings.gap.levels, findings.cosines, strict=True)
    ]
    return markdown_table(head, rows)


def tilt_in_words(findings: Findings) -> list[str]:
    """Say what moving the samples along the gap does to their likeness to the real clips, and how far to move them."""
    tilt, tilt_at_one, balanced = findings.tilt, findings.tilt_at_one, findings.balanced
    if tilt is None or tilt_at_one is None or balanced is None:
        return []
    effect, advice = "does neither, as far as can be told", "expect nothing of this pair"
    window = findings.reflection_steps
    where = f" in {_in_words(window)}" if window else ""
    if tilt.low > 0:
        steps = f" --reflection-steps '{_in_words(window)}'" if window else ""
        effect = "makes them more like real ones"
        advice = f"try --strength {balanced.value:.2f}{steps}, or that of each level"
    elif tilt.high < 0:
        effect, advice = "makes them less like real ones", "do not reflect with this pair"
    by_level = ", ".join(f"{strength:.2f}" for strength in findings.strengths)
    return [
        f"- Tilt{where}: {_signed(tilt)}: moving base's samples along the gap {effect}.",
        f"- At strength 1{where} the tilt is {_signed(tilt_at_one)}; it vanishes at strength {balanced.value:.2f} "
        f"({balanced.low:.2f} to {balanced.high:.2f}), and by level at {by_level}.",
        f"- Verdict: {advice}.",
    ]


def _in_words(window: Window) -> str:
    """Return a window as the command line takes it."""
    ends = f"{window.start:g}, {window.stop:g}"
    return (
        f"[{ends}]" if window.unit == "steps" else f"{{start: {window.start:g}, stop: {window.stop:g}, unit: log_snr}}"
    )


def _signed(estimate: Estimate | CorrectedCosine) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"


def verdict(calibration: Calibration) -> list[str]:
    """Say in words where the pair helps, and what to set."""
    lines = []
    for kind in ("helps", "does nothing", "points the wrong way"):
        steps = [str(level.step) for level in calibration.levels if level.verdict == kind]
        if steps:
            count = f"{len(steps)} of {len(calibration.levels)} noise levels"
            lines.append(f"- By its denoising error the pair {kind} at {count}: {', '.join(steps)}.")
    value, low, high = calibration.gain_at_one
    lines.append(
        f"- Gain in denoising error, mean over the levels: {calibration.gain:+.2%} at each level's γ* where it helps, "
        f"{value:+.2%} ({low:+.2%} to {high:+.2%}) at strength 1 everywhere."
    )
    if calibration.window is None:
        lines.append("- No constant strength lowers the denoising error.")
    else:
        start, stop = calibration.window
        window = f"--reflection-steps '[{start:.2f}, {stop:.2f}]'"
        lines.append(f"- The constant strength that lowers it most: {window} --strength {calibration.constant:.2f}")
    return lines
