"""Nodes for ComfyUI. It runs inside ComfyUI only, whose own modules it imports.

``from w2sd_video.backends.comfyui import *`` in a file of ``custom_nodes`` is the installation.
"""

from w2sd_video.backends.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, comfy_entrypoint

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"]
