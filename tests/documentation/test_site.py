"""The site is built without a warning, names every public name, and fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pages import ROOT

import w2sd_video

pytest.importorskip("mkdocs", reason="the site is built by mkdocs; install the extra 'docs'")
pytest.importorskip("mkdocstrings", reason="the reference is made by mkdocstrings; install the extra 'docs'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


class Fetched(HTMLParser):
    """Collects what a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address of a script, a style, a picture or a frame."""
        given = dict(attrs)
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.sources.append(given.get("href") or "")
        elif tag in ("script", "img", "iframe", "source", "video"):
            self.sources.append(given.get("src") or "")


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text(encoding="utf-8"))
        assert fetched.sources
        assert not [source for source in fetched.sources if re.match(r"(https?:)?//", source)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_reference_has_every_public_name_and_backend(site: Path) -> None:
    text = {name: (site / "reference" / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "backends")}
    for name in w2sd_video.__all__:
        assert f'id="w2sd_video.{name}"' in text["index"], name
    for name in ("pipeline", "animatediff", "cogvideox", "dit_moe"):
        assert f'id="w2sd_video.backends.{name}.load"' in text["backends"], name
