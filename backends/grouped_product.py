"""Tokens times the weights of the expert that each is sent to, without a wait for the device."""

from __future__ import annotations

import torch
from torch.nn import functional

_BLOCKS = 4
"""Blocks an expert has on the average, where products are taken block by block: more waste less, and copy more."""


class Groups:
    """Tokens that are sorted by their group, each to be multiplied by the matrix of its group.

    In half precision the products are torch's grouped ones, where it has them. Else torch would wait for the device to
    know how many tokens a group has, and each group is filled up to whole blocks of one size.

    Args:
        numbers: of the group of each token, sorted, (tokens,).
        count: how many groups there are.
    """

    def __init__(self, numbers: torch.Tensor, count: int) -> None:
        self._numbers, self._count = numbers, count
        self._groups = torch.arange(count, device=numbers.device)
        self._ends = torch.searchsorted(numbers, self._groups, right=True).int()
        self._blocks: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def product(self, tokens: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        """Multiply tokens (tokens, in) by the matrices (groups, in, out) of their groups: (tokens, out)."""
        if hasattr(functional, "grouped_mm") and tokens.dtype == torch.bfloat16:
            return functional.grouped_mm(tokens, matrices, offs=self._ends)
        size, places, groups = self._blocks = self._blocks or self._laid_out(len(tokens))
        filled = tokens.new_zeros(len(groups) * size, tokens.shape[1]).index_copy(0, places, tokens)
        products = torch.bmm(filled.unflatten(0, (len(groups), size)), matrices[groups])
        return products.flatten(0, 1)[places]

    def _laid_out(self, tokens: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Return the size of the blocks, the place of each token in them, and the group of each block."""
        size = max(1, tokens // (_BLOCKS * self._count))
        ends = self._ends.long()
        starts = functional.pad(ends, (1, -1))
        last_blocks = ((ends - starts + size - 1) // size).cumsum(0)
        first_blocks = functional.pad(last_blocks, (1, -1))
        shifts = first_blocks * size - starts
        places = torch.arange(tokens, device=ends.device) + shifts[self._numbers]
        blocks = torch.arange(tokens // size + self._count, device=ends.device)
        return size, places, torch.searchsorted(last_blocks, blocks, right=True).clamp(max=self._count - 1)
