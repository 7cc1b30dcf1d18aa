"""Palette masks are read by index; files that disagree about an index's colour would mix up the classes unseen.

`convert("P", palette=ADAPTIVE)` numbers the colours of each file anew, and tools that write two entries differ in which
one is white. A set with one palette, whatever its colours, stays as it is; no file is read by colour here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

WAY_OUT = "palette masks are read by index, so save all masks in colour (RGB), or all with one palette"
_GREY = 0x010101  # grey g as a packed colour is g times this


class Clash(NamedTuple):
    """Two masks of one set, by number, whose values cannot be compared, and why."""

    earlier: int
    later: int
    why: str


@dataclass
class Palettes:
    """What the masks seen so far say of indices and colours."""

    _said: dict[int, tuple[int, int]] = field(default_factory=dict)  # index -> its colour, the first mask that has it
    _indexed: int | None = None  # the first mask whose indices are not its colours
    _coloured: int | None = None

    def add(self, number: int, colours: Mapping[int, int], in_colour: bool) -> Clash | None:
        """What contradicts an earlier mask.

        Args:
            number: Of the mask.
            colours: Of a palette mask: index that occurs -> colour 0xRRGGBB.
            in_colour: The mask holds colours itself.
        """
        for index, colour in colours.items():
            first, earlier = self._said.setdefault(index, (colour, number))
            if first != colour:
                return Clash(
                    earlier, number, f"index {index} is #{first:06x} in one's palette, #{colour:06x} in another's"
                )
        if in_colour and self._coloured is None:
            self._coloured = number
        if self._indexed is None and any(colour != index * _GREY for index, colour in colours.items()):
            self._indexed = number
        if self._indexed is None or self._coloured is None:
            return None
        pair = sorted((self._indexed, self._coloured))
        return Clash(pair[0], pair[1], "palette masks beside masks in colour")


def colours_of(values: list[int], palette: tuple[int, ...]) -> dict[int, int]:
    """Index that occurs -> its colour; an index beyond the palette has none."""
    return {value: palette[value] for value in values if value < len(palette)}
