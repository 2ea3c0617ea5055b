"""The tests of comfyui/, each file in a process of its own: ComfyUI takes names like `utils` and keeps a state."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMFYUI = Path(os.environ.get("COMFYUI", ROOT / "build" / "comfyui"))
FILES = sorted((HERE / "comfyui").glob("test_*.py"))
REQUIRED = ["av", "sentencepiece", "torchsde"]


def why_not():
    """Return why ComfyUI cannot be imported here, or None."""
    if not (COMFYUI / "comfyui_version.py").exists():
        return f"there is no ComfyUI in {COMFYUI}: bash .ci/comfyui, or set COMFYUI to the folder of one"
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    return f"ComfyUI imports {', '.join(missing)}: install the extra 'test'" if missing else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_in_comfyui(file):
    if reason := why_not():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-n", "0", "--tb=short", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "W2SD_IN_COMFYUI": str(COMFYUI), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stdout[-20000:] + run.stderr[-5000:]


def test_outside_of_comfyui_nothing_imports_it():
    """The package and its backends come without ComfyUI; what runs inside it says what it is missing."""
    script = "import sys, w2sd_video.backends.k_diffusion as k; assert 'comfy' not in sys.modules; {}"
    script = script.format("import w2sd_video.backends.comfyui")
    run = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 1 and "No module named 'comfy" in run.stderr
