"""Commands that tests run in processes of their own: their environment, and what they hear."""

import os
import signal

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
OF_A_USER = {name: value for name, value in ENVIRONMENT.items() if name != "W2SD_TRACEBACK"}
"""In which an error that nobody foresaw is one line, as a user sees it."""


def hears_ctrl_c():
    """Processes in the background of a shell are started deaf to it, and those that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
