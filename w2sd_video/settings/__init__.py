"""What can be set, where it is read from, what is wrong with it, and what it will cost.

``schema`` is a configuration as dataclasses, ``command_line`` and ``files`` read one, ``value_checks`` and
``model_checks`` refuse what makes no sense, ``evaluations`` counts and ``words`` says what it will do.
"""

from __future__ import annotations

from w2sd_video._moved import names_of

__getattr__ = names_of(__name__)
