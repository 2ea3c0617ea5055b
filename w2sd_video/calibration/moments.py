"""Products of the errors of strong and weak, by noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from w2sd_video.levels import Level
from w2sd_video.window import Moment, Window


@dataclass(frozen=True)
class Moments:
    """Products of the errors of strong and weak, as means over the elements of a latent.

    With the noise ε and the predictions p_s, p_w of it, each is an array (levels, draws, clips).

    Attributes:
        levels: the noise levels, the noisiest first.
        steps: which step of the scheduler each is, counted from the noisiest.
        total: how many steps there are.
        error: ‖ε − p_s‖², the denoising error of strong.
        gap: ‖p_s − p_w‖².
        product: ⟨ε − p_s, p_s − p_w⟩.
        ideal: where there is an estimate p* of the ideal prediction, ‖p* − p_s‖², ⟨ε − p_s, p* − p_s⟩ and how many
            clips are behind it, (3, levels, draws, clips).
    """

    levels: tuple[Level, ...]
    steps: tuple[int, ...]
    total: int
    error: np.ndarray
    gap: np.ndarray
    product: np.ndarray
    ideal: np.ndarray | None = None

    @property
    def weak_error(self) -> np.ndarray:
        """‖ε − p_w‖², the denoising error of weak."""
        return self.error + 2 * self.product + self.gap

    def within(self, window: Window | None) -> np.ndarray | None:
        """Return which levels are in a window, (levels,); None for all.

        Raises:
            ValueError: a window without a level in it.
        """
        if window is None:
            return None
        moments = (Moment(step, self.total, level) for step, level in zip(self.steps, self.levels, strict=True))
        chosen = np.array([window.share_at(moment) > 0 for moment in moments])
        if not chosen.any():
            raise ValueError(f"window {window}: holds none of the {len(chosen)} levels with signal; take a wider one")
        return chosen

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Return the moments of several batches of clips as one."""
        first = parts[0]
        names = ("error", "gap", "product") if first.ideal is None else ("error", "gap", "product", "ideal")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names}
        return cls(first.levels, first.steps, first.total, **arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as arrays by their names; `of_arrays` takes them."""
        levels = np.array([(level.alpha, level.sigma) for level in self.levels]).reshape(-1, 2)
        arrays = {"levels": levels, "steps": np.array(self.steps, int), "total": np.array(self.total)}
        arrays |= {name: getattr(self, name) for name in ("error", "gap", "product")}
        return arrays if self.ideal is None else arrays | {"ideal": self.ideal}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Moments | None:
        """Return the moments that `arrays` has made into arrays; None for arrays of something else."""
        try:
            levels = tuple(Level(float(alpha), float(sigma)) for alpha, sigma in arrays["levels"])
            error, gap, product = (arrays[name] for name in ("error", "gap", "product"))
            steps, total = tuple(arrays["steps"].tolist()), int(arrays["total"])
        except (KeyError, TypeError, ValueError):
            return None
        is_whole = error.ndim == 3 and error.shape == gap.shape == product.shape
        is_whole = is_whole and len(error) == len(levels) == len(steps)
        return cls(levels, steps, total, error, gap, product, arrays.get("ideal")) if is_whole else None
