"""The fenced blocks, links and inline commands of the README and the pages, as a parser of CommonMark sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: the file that it stands in.
        line: where it begins, counted from 1.
        language: what stands behind the fence.
        text: what is between the fences.
        marker: the HTML comment on the line before it, without its arrows; empty where there is none.
    """

    page: Path
    line: int
    language: str
    text: str
    marker: str

    @property
    def name(self) -> str:
        """Where it is, for a person."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file that it is said to be."""
        return self.marker.removeprefix("file: ") if self.marker.startswith("file: ") else None


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    tokens, blocks = _tokens(page), []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence" and token.map:
            adjacent = before is not None and before.type == "html_block" and before.map[1] == token.map[0]
            comment = re.fullmatch(r"<!--(.*?)-->\s*", before.content, re.DOTALL) if adjacent else None
            marker = comment.group(1).strip() if comment else ""
            blocks.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, marker))
    return blocks


def links_of(page: Path) -> Iterator[str]:
    """Yield where the links and pictures of a page lead."""
    for token in _inline(page):
        if token.type in ("link_open", "image"):
            yield str(token.attrs["href" if token.type == "link_open" else "src"])


def inline_code_of(page: Path) -> Iterator[str]:
    """Yield what stands between single backticks."""
    return (token.content for token in _inline(page) if token.type == "code_inline")


def anchors_of(page: Path) -> set[str]:
    """Return the names that links to headings of a page may have."""
    tokens = _tokens(page)
    headings = [text.content for token, text in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _inline(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or ()
