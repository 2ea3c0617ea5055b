"""A miniature that the tests of a file share."""

import pytest
from running import configured

from w2sd_video.rendering.load import load


@pytest.fixture(scope="module")
def pixart():
    pipe = load(configured("pixart"))
    pipe.set_progress_bar_config(disable=True)
    return pipe
