"""One kind of page, to look at clips: static, self-contained, offline, with a player that keeps all clips in step."""

from w2sd_video.page.contents import Cell, Clip, Column, Group, Page, Table
from w2sd_video.page.index import write_index
from w2sd_video.page.write import embedded, page_html, write_page

__all__ = ["Cell", "Clip", "Column", "Group", "Page", "Table", "embedded", "page_html", "write_index", "write_page"]
