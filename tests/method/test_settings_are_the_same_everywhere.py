"""A setting of a reflection has one name and one default, wherever it is given."""

from dataclasses import fields
from inspect import signature

import pytest

from w2sd_video import reflection, sample
from w2sd_video.backends.k_diffusion import sample_w2sd
from w2sd_video.reflection_settings import Reflection
from w2sd_video.settings.schema import RenderConfig

DEFAULTS = {setting.name: setting.default for setting in fields(Reflection)}
OF_PLACES = {
    "reflection": {name: one.default for name, one in signature(reflection).parameters.items()},
    "sample": {name: one.default for name, one in signature(sample).parameters.items()},
    "sample_w2sd": {name: one.default for name, one in signature(sample_w2sd).parameters.items()},
    "RenderConfig": {field.name: field.default for field in fields(RenderConfig)},
}


@pytest.mark.parametrize("place", OF_PLACES)
def test_names_and_defaults_are_those_of_a_reflection(place):
    of_place = OF_PLACES[place]
    missing = {"grid"} if place == "sample_w2sd" else set()  # its levels are given
    assert {name: of_place[name] for name in DEFAULTS if name in of_place} == {
        name: default for name, default in DEFAULTS.items() if name not in missing
    }


def test_settings_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        Reflection(2, 0.5, 2)
