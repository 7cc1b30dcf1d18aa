"""What is read of a source and written of its prediction. Oracle: the arrays and affines that were stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from segdistill.deploy.card import Card
from segdistill.deploy.sources import Source, read_slices, read_written, write_slices

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (4, 6, 5)])
def test_the_label_of_an_hdf5_file_has_the_shape_of_its_image(
    tmp_path: Path, card: Callable[..., Card], shape: tuple[int, ...]
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.zeros(shape, np.uint8)
    source = Source((tmp_path / "a.h5",), Path("a"))
    labels = RNG.integers(0, 3, read_slices(source).shape).astype(np.uint8)
    write_slices(tmp_path / "out.h5", labels, source, card(3))
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["label"][()], labels.reshape(shape))
    np.testing.assert_array_equal(read_written(tmp_path / "out.h5", source, card(3)), labels)
    with pytest.raises(ValueError, match="reshape"):
        write_slices(tmp_path / "out.h5", labels[:, 1:], source, card(3))
