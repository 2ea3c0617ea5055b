"""Writing a page: one HTML file that needs no other, but for clips that lie beside it."""

from __future__ import annotations

import base64
import functools
import mimetypes
from dataclasses import asdict
from pathlib import Path

from w2sd_video.page.contents import Page
from w2sd_video.writing import write_whole

TEMPLATE = Path(__file__).with_name("page.html.jinja")
"""The page without its contents, its style and its script, which lie beside it."""


def write_page(path: Path, page: Page) -> None:
    """Write a page, whole or not at all."""
    write_whole(path, page_html(page))


def page_html(page: Page) -> str:
    """Return a page as HTML. All of its texts are escaped."""
    plots = {words: _data_uri("image/svg+xml", svg.encode()) for words, svg in page.plots.items()}
    return _template().render(
        page=page,
        plots=plots,
        groups=[asdict(group) for group in page.groups],
        style=TEMPLATE.with_name("page.css").read_text("utf-8"),
        script=TEMPLATE.with_name("page.js").read_text("utf-8"),
    )


def embedded(file: Path) -> str:
    """Return a file as an address that holds it, so that a page can be moved without it."""
    return _data_uri(mimetypes.guess_type(file.name)[0] or "application/octet-stream", file.read_bytes())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@functools.cache
def _template():  # type: ignore[no-untyped-def]  # jinja2 is imported when a page is written
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text("utf-8"))
