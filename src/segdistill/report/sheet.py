"""A contact sheet: many images with their masks on one page, to be looked at before trusting them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..formats.overlay import overlay

MARGIN = 8  # pixels around each tile
TITLE = 12  # font size; a title has one line
PAPER, INK = (255, 255, 255), (40, 40, 40)

Tile = tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]


def contact_sheet(tiles: Sequence[Tile], colours: Sequence[tuple[int, int, int]], columns: int) -> NDArray[np.uint8]:
    """Tiles (title, image (H, W, 3), labels (H, W) or None) in rows of `columns`, labels drawn over; (H', W', 3).

    Images keep their pixels; where their sizes differ the largest sets the grid and the others are centred in it. A
    title wider than its tile is cut.

    Raises:
        ValueError: no tiles, no columns, or an overlay that cannot be drawn.
    """
    if not tiles or columns < 1:
        raise ValueError(f"{len(tiles)} tiles in {columns} columns; at least one of each is needed")
    columns = min(columns, len(tiles))
    height = max(image.shape[0] for _, image, _ in tiles) + TITLE + MARGIN // 2
    width = max(image.shape[1] for _, image, _ in tiles)
    lines = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (MARGIN + columns * (width + MARGIN), MARGIN + lines * (height + MARGIN)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TITLE)
    for number, (title, image, labels) in enumerate(tiles):
        line, column = divmod(number, columns)
        left, top = MARGIN + column * (width + MARGIN), MARGIN + line * (height + MARGIN)
        draw.text((left, top), _fitting(title, width, font), INK, font, anchor="lt")
        tile = image if labels is None else overlay(image, labels, colours)
        right = (width - tile.shape[1]) // 2
        down = TITLE + MARGIN // 2 + (height - TITLE - MARGIN // 2 - tile.shape[0]) // 2
        sheet.paste(Image.fromarray(np.ascontiguousarray(tile)), (left + right, top + down))
    return np.array(sheet)


def _fitting(title: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The title's beginning that is at most `width` pixels long."""
    title = " ".join(title.split())  # one line
    while title and font.getlength(title) > width:
        title = title[:-2].rstrip("…") + "…" if len(title) > 2 else ""
    return title
