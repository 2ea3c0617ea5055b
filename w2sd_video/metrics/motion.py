"""Motion of clips without their prompts: our own measures after three dimensions of VBench (arXiv 2311.17982).

None needs a trained network. Where VBench has one find where pixels move to, here it is OpenCV's dense inverse search
(Kroeger et al., arXiv 1603.03590), so the numbers are not VBench's, and compare with each other only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from w2sd_video.metrics import Score
from w2sd_video.metrics.weights import loading

FASTEST = 0.05
"""The share of pixels, those of the largest flow, that tell how much a frame moves."""


def flicker() -> Score:
    """How little neighbouring frames differ, 0 to 1: (255 - their mean absolute difference) / 255, as in VBench.

    VBench takes it of prompts for still scenes; where things move, it falls with the motion too. NaN for an image.
    """

    def of(clip: np.ndarray) -> float:
        return 1 - float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean()) / 255

    return _score_of_motion("flicker", 2, of)


def dynamic_degree() -> Score:
    """How fast the fastest 5 % of the pixels move, in pixels a frame at a shorter side of 256; NaN for an image.

    It is the mean flow of these pixels, and then the mean over all pairs of neighbours. VBench has RAFT find the flow
    at 8 frames a second, and calls a clip dynamic if in a quarter of the pairs it exceeds 6 of the same unit; its
    figure is the share of such clips. We keep the speed itself, which tells apart clips on one side of it too.

    Raises:
        MetricUnavailableError: OpenCV cannot be had.
    """
    flow_of = _optical_flow("dynamic_degree")

    def of(clip: np.ndarray) -> float:
        grey = _grey(clip)
        speeds = np.stack([np.linalg.norm(flow_of(*pair), axis=-1).ravel() for pair in pairwise(grey)])
        fastest = np.sort(speeds)[:, -max(1, int(FASTEST * speeds.shape[1])) :]
        return float(fastest.mean()) * 256 / min(clip.shape[1:3])

    return _score_of_motion("dynamic_degree", 2, of)


def motion_smoothness() -> Score:
    """How well each frame is foretold by the two beside it, 0 to 1; NaN for fewer than three frames.

    The pixels of both neighbours are carried half of the way to the other one, along straight lines; the score is
    (255 - the mean absolute difference between the mean of the two and the frame) / 255, over all inner frames.
    VBench has the network AMT-S foretell every second frame. A uniform motion scores near 1, a jerk less; so does a
    texture that the flow cannot follow.

    Raises:
        MetricUnavailableError: OpenCV cannot be had.
    """
    flow_of = _optical_flow("motion_smoothness")

    def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        earlier, later = _grey(np.stack([before, after]))
        carried = _carry(before, -flow_of(earlier, later) / 2) + _carry(after, -flow_of(later, earlier) / 2)
        return carried / 2

    def of(clip: np.ndarray) -> float:
        triples = zip(clip, clip[1:], clip[2:], strict=False)
        return 1 - float(np.mean([np.abs(between(a, c) - b).mean() for a, b, c in triples])) / 255

    return _score_of_motion("motion_smoothness", 3, of)


def _score_of_motion(name: str, frames: int, of: Callable[[np.ndarray], float]) -> Score:
    def of_all(clips: np.ndarray, _: Sequence[str]) -> np.ndarray:
        return np.array([of(clip) if len(clip) >= frames else np.nan for clip in clips])

    return Score(name, True, of_all)


def _grey(clip: np.ndarray) -> np.ndarray:
    """Return the luma of BT.601, which OpenCV's own conversion has too."""
    return (clip @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)


def _optical_flow(name: str) -> Any:
    """Return ``(before, after) -> flow (height, width, 2)`` in pixels, x and y, of grey uint8 (height, width)."""
    with loading(name):
        import cv2
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return lambda before, after: search.calc(before, after, np.zeros((*before.shape, 2), np.float32))


def _carry(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the frame seen at each pixel plus the flow there, float32; beyond the edge, the edge goes on."""
    import cv2

    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    return cv2.remap(
        frame.astype(np.float32), x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
