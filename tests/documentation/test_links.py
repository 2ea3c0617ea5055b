"""Links and pictures of the README and the pages lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import PAGES, ROOT, anchors_of, links_of


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path) -> None:
    for link in links_of(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{page.name}: {link} leads out of the repository"
        if anchor and not anchor.startswith("w2sd_video."):  # those are made by the reference; the site's build looks
            assert anchor in anchors_of(target), f"{page.name}: {link}: no such heading"


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent != ROOT], ids=lambda page: page.name)
def test_pages_lead_to_pages_alone(page: Path) -> None:
    """What lies outside docs/ is not part of the site."""
    for link in links_of(page):
        path = link.partition("#")[0]
        if path and not path.startswith(("http://", "https://")):
            assert (page.parent / path).resolve().is_relative_to(ROOT / "docs"), link
