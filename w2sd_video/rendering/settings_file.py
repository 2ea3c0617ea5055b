"""Settings of a file for a script of the user's own: ``reflection(pipe, **load_settings("best.yaml"))``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from w2sd_video.branch import Branch
from w2sd_video.messages import ConfigError
from w2sd_video.rendering.sample import branch_of, settings_of_a_reflection
from w2sd_video.settings.command_line import parse
from w2sd_video.settings.schema import ROLES, filled, used_roles


def load_settings(
    file: str | Path, weights: Mapping[str, nn.Module | tuple[nn.Module, nn.Module]] | None = None
) -> dict[str, Any]:
    """Return the arguments of `reflection` that a configuration says: of those that ``w2sd_video.tune`` found, say.

    What the pipeline itself is called with (steps, sizes, ``eta``) is no part of them; a file that the search has
    written says at its head what to call it with. A configuration sets the guidance of base too; so call the pipeline
    with a ``guidance_scale`` above 1 where any branch has one that is not 1.

    Args:
        file: a configuration: a YAML file, the name of a packaged one, or the .json beside a render.
        weights: second denoisers by the names that the file has for them; without, each branch keeps the name, under
            which a backend of this package has loaded one.

    Returns:
        Keyword arguments for ``reflection(pipe, **arguments)``.

    Raises:
        ConfigError: a file that is not there, or does not make sense; or weights by a name that no branch in it has.
    """
    config = parse(["--config", str(file), "--", "a prompt, which is not looked at"], command=None).config
    branches: dict[str, Branch] = {role: branch_of(filled(config, getattr(config, role))) for role in ROLES}
    names = {branch.weights for branch in branches.values() if isinstance(branch.weights, str)}
    for name in weights or {}:
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ConfigError(f"weights {name!r}: no branch of {file} has them; they are {known}")
    for role, branch in branches.items():
        if isinstance(branch.weights, str) and branch.weights in (weights or {}):
            branches[role] = replace(branch, weights=(weights or {})[branch.weights])
    unused: dict[str, Branch] = {role: Branch() for role in ROLES if role not in used_roles(config)}
    return {**branches, **unused, **settings_of_a_reflection(config)}
