"""The cache holds what decoding gives, and a damaged one is rebuilt."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import make_set
from volumes import save_series

from segdistill.data.batches import Dataset, TrainingBatches
from segdistill.data.cache import open_cache
from segdistill.data.labels import build_mapping, scan_values
from segdistill.data.manifest import load_manifest
from segdistill.data.rows import Row
from segdistill.data.splits import apply_budget
from segdistill.formats import read_image, read_mask, resize_image, resize_labels
from segdistill.types import UserError


@pytest.fixture
def data(tmp_path):
    rows = load_manifest(make_set(tmp_path / "süß data", count=9, size=48, unlabelled=2)).rows
    return rows, build_mapping(scan_values([row.mask for row in rows if row.mask]))


def opened(data, tmp_path, **other):
    rows, mapping = data
    calls = []
    settings = {"size": (32, 40), "fit": "squash", "folder": tmp_path / "cache"} | other
    cache = open_cache(rows, mapping, on_progress=lambda done, total: calls.append((done, total)), **settings)
    return cache, calls


def test_rows_are_the_decoded_files(data, tmp_path):
    cache, calls = opened(data, tmp_path)
    rows, mapping = data
    assert calls[-1] == (9, 9)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(cache.images[i], resize_image(read_image(row.image), (32, 40), "squash"))
        expected = resize_labels(mapping.apply(read_mask(row.mask)), (32, 40), "squash") if row.mask else 0
        np.testing.assert_array_equal(cache.masks[i], np.broadcast_to(expected, (32, 40)))


def test_a_second_opening_decodes_nothing(data, tmp_path):
    first, _ = opened(data, tmp_path)
    second, calls = opened(data, tmp_path)
    assert calls == []
    assert second.data_hash == first.data_hash


def test_another_size_or_file_is_another_cache(data, tmp_path):
    opened(data, tmp_path)
    assert opened(data, tmp_path, size=(32, 32))[1]
    os.utime(data[0][0].image, ns=(1, 1))
    assert opened(data, tmp_path)[1]


def test_another_file_of_the_same_size_and_time_is_another_cache(data, tmp_path):
    """As `cp -p`, `rsync -t` and unpacking leave them."""
    first, _ = opened(data, tmp_path)
    image = data[0][0].image
    state = image.stat()
    content = bytearray(image.read_bytes())
    content[-1] ^= 1  # of the trailing checksum, which nobody reads
    image.write_bytes(content)
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    second, _ = opened(data, tmp_path)
    assert second.data_hash != first.data_hash


def test_what_a_killed_build_left_is_removed_after_a_day(data, tmp_path):
    left, young, foreign = (
        tmp_path / "cache" / name for name in (f"{'a' * 24}.{'b' * 32}.tmp", f"{'c' * 24}.{'d' * 32}.tmp", "mine.tmp")
    )
    for folder in (left, young, foreign):
        folder.mkdir(parents=True)
    for folder in (left, foreign):
        os.utime(folder, (0, 0))
    opened(data, tmp_path)
    assert [folder.exists() for folder in (left, young, foreign)] == [False, True, True]


def test_rows_in_any_order_are_the_same_pixels(data, tmp_path):
    rows, mapping = data
    plain, _ = opened(data, tmp_path)
    turned, _ = opened((rows[::-1], mapping), tmp_path)
    np.testing.assert_array_equal(turned.images[::-1], plain.images)
    np.testing.assert_array_equal(turned.masks[::-1], plain.masks)
    assert turned.data_hash != plain.data_hash


def test_a_half_cache_that_is_written_to_stays_and_one_that_others_remove_is_no_error(data, tmp_path, monkeypatch):
    at_work, taken = (tmp_path / "cache" / f"{letter * 24}.{'0' * 32}.tmp" for letter in "ab")
    at_work.mkdir(parents=True)
    (at_work / "images.npy").touch()
    os.utime(at_work, (1, 1))
    listed = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*listed(self, pattern), taken])
    opened(data, tmp_path)
    assert at_work.exists()


def test_a_dicom_slice_more_in_the_folder_is_another_cache(tmp_path):
    """The window of a series without one is over all its slices, so it changes the pixels of the others."""
    folder = tmp_path / "case"
    folder.mkdir()
    files = save_series(folder, (np.arange(5 * 64).reshape(5, 8, 8) * 9).astype(np.uint16))
    last = files[-1].rename(tmp_path / "last.dcm")
    data = [Row(path, None, "train") for path in files[:-1]], None
    first, _ = opened(data, tmp_path)
    assert first.images.mean((1, 2, 3))[0] < first.images.mean((1, 2, 3))[-1] / 2
    assert opened(data, tmp_path)[1] == []
    last.rename(files[-1])
    second, calls = opened(data, tmp_path)
    assert calls
    assert second.images.mean() < first.images.mean() - 10
    assert second.data_hash != first.data_hash


def test_a_budget_shares_the_cache(data, tmp_path):
    opened(data, tmp_path)
    rows = apply_budget([row.__class__(**{**row.__dict__, "split": "train"}) for row in data[0]], "3", seed=1)
    assert opened((rows, data[1]), tmp_path)[1] == []


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "crc.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_damaged_cache_is_rebuilt(data, tmp_path, name, damage):
    cache, _ = opened(data, tmp_path)
    expected, masks = np.array(cache.images), np.array(cache.masks)
    del cache
    (path,) = (tmp_path / "cache").glob(f"*/{name}")
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        end = content[:-1] + bytes([content[-1] ^ 255]) if damage == "flipped" else content[: len(content) // 2]
        path.write_bytes(end)
    cache, calls = opened(data, tmp_path)
    assert calls
    np.testing.assert_array_equal(cache.images, expected)
    np.testing.assert_array_equal(cache.masks, masks)


def test_an_unreadable_file_leaves_no_half_cache(data, tmp_path):
    data[0][4].image.write_bytes(b"no image")
    with pytest.raises(UserError, match="004"):
        opened(data, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_hidden_truth_does_not_reach_a_batch(data, tmp_path):
    rows = apply_budget([row.__class__(**{**row.__dict__, "split": "train"}) for row in data[0]], "3", seed=1)
    cache, _ = opened((rows, data[1]), tmp_path)
    batches = TrainingBatches(Dataset(cache, rows, data[1].classes, ("",)), seed=0)
    batch = batches.at(0, (3, 6), 0, "cpu")
    assert batch.labelled.tolist() == [True] * 3 + [False] * 6
    assert not batch.mask[3:].any()
    assert batch.mask[:3].any()
    assert cache.masks[batch.index[3:].numpy()].any()  # the truth is there, only not in the batch


def test_a_batch_is_the_cache_in_float(data, tmp_path):
    cache, _ = opened(data, tmp_path)
    rows, mapping = data
    batch = Dataset(cache, rows, mapping.classes, ("",)).batch(np.array([2, 0]))
    np.testing.assert_allclose(batch.image.permute(0, 2, 3, 1).numpy() * 255, cache.images[[2, 0]], atol=1e-4)
    np.testing.assert_array_equal(batch.mask.numpy(), cache.masks[[2, 0]])
    assert batch.classes.all()
    assert batch.index.tolist() == [2, 0]


def test_what_another_process_finished_meanwhile_is_kept(data, tmp_path):
    rows, mapping = data
    settings = {"size": (32, 40), "fit": "squash", "folder": tmp_path / "cache"}
    built = []

    def other(done: int, total: int) -> None:
        if done == total:
            open_cache(rows, mapping, **settings)
            built.extend(path.stat().st_ino for path in tmp_path.glob("cache/*/images.npy") if path.parent.suffix == "")

    open_cache(rows, mapping, on_progress=other, **settings)
    (left,) = (tmp_path / "cache").iterdir()
    assert [(left / "images.npy").stat().st_ino] == built
