"""SSL4MIS's HDF5 layout. Oracle: the arrays that were written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import fails

from segdistill.formats import check_pair, layout, read_image, read_mask, read_mask_volume, read_volume

RNG = np.random.default_rng(0)


def save(path: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values, compression="gzip" if values.ndim else None)
    return path


def test_unit_floats_are_not_stretched(tmp_path: Path) -> None:
    image = (RNG.random((4, 6, 5)) * 0.5).astype(np.float32)
    label = RNG.integers(0, 4, (4, 6, 5)).astype(np.uint8)
    path = save(tmp_path / "a.h5", image=image, label=label)
    np.testing.assert_array_equal(read_volume(path), np.rint(image.astype(float) * 255))
    np.testing.assert_array_equal(read_mask_volume(path), label)
    np.testing.assert_array_equal(read_image(Path(f"{path}#3"))[..., 2], read_volume(path)[3])
    np.testing.assert_array_equal(read_mask(Path(f"{path}#0")), label[0])
    assert layout(path) == (4, (6, 5), None)
    check_pair(path, path)
    check_pair(Path(f"{path}#1"), Path(f"{path}#1"))


def test_a_slice_and_other_types(tmp_path: Path) -> None:
    grey = RNG.integers(3, 9, (6, 5)).astype(np.uint8)
    path = save(tmp_path / "a.HDF5", image=grey, label=grey.astype(np.float64))
    np.testing.assert_array_equal(read_image(path)[..., 0], grey)
    np.testing.assert_array_equal(read_mask(path), grey)
    assert layout(path) == (1, (6, 5), None)
    wide = RNG.normal(0, 1000, (3, 20, 20))
    low, high = np.percentile(wide, (0.5, 99.5))
    expected = np.rint(np.clip((wide - low) / (high - low) * 255, 0, 255))
    np.testing.assert_array_equal(read_volume(save(tmp_path / "b.h5", image=wide)), expected)
    assert read_volume(save(tmp_path / "c.h5", image=np.array([[True, False]]))).tolist() == [[[255, 0]]]


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    fails(lambda: read_mask(save(tmp_path / "a.h5", image=grey, mask=grey)), "a.h5", "image, mask", '"label"')
    fails(lambda: read_image(save(tmp_path / "b.h5", image=np.zeros((2, 2, 2, 2)))), "(2, 2, 2, 2)")
    fails(lambda: read_image(save(tmp_path / "c.h5", image=np.array(3.0))), "c.h5")
    fails(lambda: read_image(save(tmp_path / "d.h5", image=np.full((4, 4), b"x"))), "d.h5", "numbers")
    fails(lambda: read_image(save(tmp_path / "e.h5", image=np.full((4, 4), np.nan))), "finite")
    fails(lambda: read_mask(save(tmp_path / "f.h5", label=np.full((4, 4), 0.5))), "fractional")
    fails(lambda: check_pair(tmp_path / "a.h5", save(tmp_path / "g.h5", label=grey[1:])), "1x3x4", "1x4x4")
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("image", shape=(10_000, 10_000, 10_000), dtype="f4", chunks=(1, 100, 100))
        file.create_group("label")
    fails(lambda: read_image(Path(f"{tmp_path / 'bomb.h5'}#0")), "10000x10000x10000")
    fails(lambda: read_mask(tmp_path / "bomb.h5"), "group")


def test_nothing_outside_the_file_is_opened(tmp_path: Path) -> None:
    grey = np.zeros((4, 4), np.uint8)
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    save(tmp_path / "other.h5", image=grey)
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["image"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "image")
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("image", (4, 4), "u1", external=[(str(tmp_path / "secret.bin"), 0, 16)])
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        virtual = h5py.VirtualLayout((4, 4), "u1")
        virtual[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image", shape=(4, 4))
        file.create_virtual_dataset("image", virtual)
    for name in ("link.h5", "raw.h5", "virtual.h5"):
        fails(lambda name=name: read_image(tmp_path / name), name, "another file")


def test_damaged_files(tmp_path: Path) -> None:
    content = save(tmp_path / "a.h5", image=RNG.random((50, 50))).read_bytes()
    broken = bytearray(content)
    broken[-4000:-100] = bytes(3900)
    for name, data in {
        "cut.h5": content[: len(content) // 2],
        "text.h5": b"<html>quota</html>",
        "empty.h5": b"",
        "broken.h5": bytes(broken),
    }.items():
        (tmp_path / name).write_bytes(data)
        fails(lambda name=name: read_image(tmp_path / name), str(tmp_path / name))


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from segdistill.formats import write_label_volume
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
write_label_volume(Path(sys.argv[1]), np.random.default_rng(0).integers(0, 3, (20, 100, 100), dtype=np.uint8))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of a file")
def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    assert done.stderr.splitlines()[-1].startswith(f"segdistill.types.UserError: {path}: cannot be written (")
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
def test_real_volumes_and_slices(shared: Path) -> None:
    folder = shared / "data" / "acdc_ssl4mis" / "data"
    for path in [*sorted(folder.glob("*.h5"))[:3], *sorted(folder.glob("slices/*.h5"))[:10]]:
        with h5py.File(path) as file:
            image, label = file["image"][()], file["label"][()]
        check_pair(path, path)
        np.testing.assert_array_equal(
            read_volume(path), np.rint(image.astype(float) * 255).reshape(-1, *image.shape[-2:])
        )
        np.testing.assert_array_equal(read_mask_volume(path), label.reshape(-1, *label.shape[-2:]))
