"""Embeddings on disk: computed once, whole or not at all, of one teacher."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

from segdistill.models import embedding_cache
from segdistill.models.embedding_cache import EmbeddingCache, weights_key
from segdistill.types import UserError

ROWS, SHAPE = (3, 5, 9, 12), (4, 2, 3)


class Teacher:
    """An embedding per row; counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def of(self, index):
        def compute(places):
            self.asked += index[places].tolist()
            return value(index[places])

        return compute


def value(index):
    return index[:, None, None, None] + torch.linspace(0, 1, 24).reshape(1, *SHAPE)


def look_up(cache, teacher, *rows):
    index = torch.tensor(rows)
    return cache.look_up(index, teacher.of(index))


@pytest.fixture
def cache(tmp_path):
    made = EmbeddingCache(tmp_path / "Größe x" / "domain", ROWS, SHAPE)
    made.use("a")
    return made


def test_each_row_is_computed_once_and_rounded_alike(cache):
    teacher = Teacher()
    first = look_up(cache, teacher, 9, 3)
    assert torch.equal(first, value(torch.tensor([9, 3])).half().float())
    assert teacher.asked == [9, 3]
    again = look_up(cache, teacher, 3, 5, 9, 3)
    assert teacher.asked == [9, 3, 5]
    assert torch.equal(again, value(torch.tensor([3, 5, 9, 3])).half().float())
    assert again.dtype == torch.float32


def test_a_later_process_reads_what_is_there(cache):
    look_up(cache, Teacher(), *ROWS)
    other, teacher = EmbeddingCache(cache.folder, ROWS, SHAPE), Teacher()
    other.use("a")
    assert torch.equal(look_up(other, teacher, 12, 5), value(torch.tensor([12, 5])).half().float())
    assert teacher.asked == []


@pytest.mark.parametrize("change", ["teacher", "rows", "shape"])
def test_what_is_of_something_else_is_dropped(cache, change):
    look_up(cache, Teacher(), *ROWS)
    rows = (3, 5, 9, 13) if change == "rows" else ROWS
    shape = (4, 3, 2) if change == "shape" else SHAPE
    other, asked = EmbeddingCache(cache.folder, rows, shape), []
    other.use("b" if change == "teacher" else "a")
    other.look_up(torch.tensor([3]), lambda places: asked.append(1) or torch.zeros(1, *shape))
    assert asked


def test_a_half_written_row_is_computed_again(cache):
    look_up(cache, Teacher(), *ROWS)
    cache.values[1, 2] = 7
    teacher = Teacher()
    assert torch.equal(look_up(cache, teacher, 3, 5), value(torch.tensor([3, 5])).half().float())
    assert teacher.asked == [5]


def test_space_is_there_before_anything_is_computed(cache, tmp_path, monkeypatch):
    assert cache.bytes == 2 * 4 * 24 == (cache.folder / "values.f16").stat().st_size
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100))
    with pytest.raises(UserError, match=r"the embeddings need 0\.00 GB, 0\.00 GB are free") as error:
        EmbeddingCache(tmp_path / "other", ROWS, SHAPE)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "other").exists()


def test_a_disk_that_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="cannot keep"):
        EmbeddingCache(tmp_path / "file" / "domain", ROWS, SHAPE)


def test_where_a_system_cannot_reserve_space(tmp_path, monkeypatch):
    monkeypatch.delattr(embedding_cache.os, "posix_fallocate", raising=False)
    monkeypatch.setattr(embedding_cache, "CHUNK", 50)
    made = EmbeddingCache(tmp_path / "c", ROWS, SHAPE)
    assert not made.values.any()
    assert made.values.nbytes == 192


def test_a_key_is_of_all_weights():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))  # also a scalar buffer
    before = weights_key(one)
    assert weights_key(one) == before
    with torch.no_grad():
        one[1].running_mean[1] = np.nextafter(np.float32(0), np.float32(1)).item()
    assert weights_key(one) != before
