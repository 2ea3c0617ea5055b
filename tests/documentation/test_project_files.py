"""What stands about the project in files of its own: paths that exist, a citation and hooks that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, inline_code_of

IN_THE_REPOSITORY = re.compile(r"(w2sd_video|backends|configs|docs|examples|tests|\.ci)/[^ ]*")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_are_named_exist(page: Path) -> None:
    for code in inline_code_of(page):
        if IN_THE_REPOSITORY.fullmatch(code) and "NAME" not in code:
            assert (ROOT / code).exists(), code


def test_the_citation_is_valid() -> None:
    citation = pytest.importorskip("cffconvert").Citation((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    citation.validate()


def test_the_citation_has_the_version_of_the_package() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    package = (ROOT / "w2sd_video" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "(.*)"', package)
    assert version and f"\nversion: {version[1]}\n" in text


def test_the_hooks_can_be_read_and_fetch_nothing() -> None:
    config = pytest.importorskip("pre_commit.clientlib").load_config(str(ROOT / ".pre-commit-config.yaml"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
