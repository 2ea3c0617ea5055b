"""The repository as custom nodes of ComfyUI, when it is cloned into ``custom_nodes``; nothing else imports this."""

import importlib.util
import sys
from pathlib import Path

if "w2sd_video" not in sys.modules:
    # backends/ and configs/ are packages of w2sd_video (package_dir of setup.cfg), installed or not.
    root = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "w2sd_video",
        root / "w2sd_video" / "__init__.py",
        submodule_search_locations=[str(root / "w2sd_video"), str(root)],
    )
    sys.modules["w2sd_video"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["w2sd_video"])

from w2sd_video.backends.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, comfy_entrypoint

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"]
