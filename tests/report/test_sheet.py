from __future__ import annotations

import numpy as np
import pytest

from segdistill.report.sheet import MARGIN, PAPER, TITLE, contact_sheet

COLOURS = ((0, 0, 0), (0, 255, 0))
HEADER = TITLE + MARGIN // 2


def tile(value: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_tiles_stand_in_rows_with_margins() -> None:
    sheet = contact_sheet([("", tile(10 * n), None) for n in range(1, 6)], COLOURS, columns=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (MARGIN + 3 * (40 + HEADER + MARGIN), MARGIN + 2 * (60 + MARGIN), 3)
    for number in range(5):
        top = MARGIN + HEADER + (number // 2) * (40 + HEADER + MARGIN)
        left = MARGIN + (number % 2) * (60 + MARGIN)
        assert (sheet[top : top + 40, left : left + 60] == 10 * (number + 1)).all()
        assert (sheet[top + 40, left : left + 60] == PAPER).all()
    assert (sheet[-(40 + MARGIN) :, -(60 + MARGIN) :] == PAPER).all()  # the sixth place stays empty


def test_masks_are_drawn_over_their_image_only() -> None:
    labels = np.zeros((40, 60), dtype=np.uint8)
    labels[10:20, 10:20] = 1
    sheet = contact_sheet([("a", tile(100), labels), ("b", tile(100), None)], COLOURS, columns=2)
    left = sheet[MARGIN + HEADER :, MARGIN : MARGIN + 60]
    right = sheet[MARGIN + HEADER :, 2 * MARGIN + 60 : 2 * MARGIN + 120]
    assert (left[10, 10:20] == (0, 255, 0)).all()
    assert (right[:40] == 100).all()


def test_titles_are_written_above_and_cut_to_the_tile() -> None:
    def header(title: str) -> np.ndarray:
        return contact_sheet([(title, tile(0), None)], COLOURS, columns=1)[MARGIN : MARGIN + TITLE + 2] < 128

    assert not header("").any()
    assert header("Größe 7").any()
    long = header("a very long name of a very deep folder/image_000123.png\nwith a line break")
    assert long[:, MARGIN : MARGIN + 60].any()
    assert not long[:, MARGIN + 60 :].any()


def test_different_sizes_are_centred() -> None:
    sheet = contact_sheet([("", tile(10), None), ("", tile(20, 20, 30), None)], COLOURS, columns=2)
    left = 2 * MARGIN + 60 + 15
    top = MARGIN + HEADER + 10
    assert (sheet[top : top + 20, left : left + 30] == 20).all()
    assert (sheet == 20).all(axis=2).sum() == 600


def test_fewer_tiles_than_columns_leave_no_empty_column() -> None:
    assert contact_sheet([("", tile(1), None)], COLOURS, columns=9).shape[1] == 60 + 2 * MARGIN


@pytest.mark.parametrize(("count", "columns"), [(0, 3), (2, 0)])
def test_nothing_to_show_is_an_error(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([("", tile(1), None)] * count, COLOURS, columns)
