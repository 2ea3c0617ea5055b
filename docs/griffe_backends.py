"""Tell the reference's reader of source code that the folder backends/ is installed as ``w2sd_video.backends``."""

from typing import Any

import griffe


class Backends(griffe.Extension):
    """Put the folder where the installed package has it (``package_dir`` of setup.cfg)."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Load the folder and hang it into the package."""
        if pkg.name == "w2sd_video":
            backends = loader.load("backends", submodules=True)
            assert isinstance(backends, griffe.Module)
            pkg.set_member("backends", backends)
