from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from segdistill.report.links import link_to

NAMES = ["a.png", "Müller, Hans 50% #1?.png", "息肉 x&y;'\"<b>.png", "a:b.png", "c.png#3"]


@pytest.mark.parametrize("name", NAMES if os.name != "nt" else NAMES[:1])
@pytest.mark.parametrize("folder", ["run", "runs/größe 1/first"])
def test_a_link_leads_to_the_file(tmp_path, name, folder):
    image, report = tmp_path / "my data" / "images" / name, tmp_path / folder
    image.parent.mkdir(parents=True)
    image.write_bytes(b"x")
    report.mkdir(parents=True)
    link = link_to(image, report)
    assert not link.startswith(("/", "file:"))
    assert link.isascii()
    assert set(link) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~/%")
    opened = urlsplit(urljoin((report.resolve() / "report.html").as_uri(), link))  # as a browser does
    assert Path(unquote(opened.path)).samefile(image)


def test_the_address_of_a_slice_is_not_part_of_the_link(tmp_path):
    assert link_to(tmp_path / "a b.nii.gz#12", tmp_path / "run") == "../a%20b.nii.gz"


def test_relative_paths_are_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert link_to(Path("data/x.png"), Path("runs/first")) == "../../data/x.png"


def test_a_name_that_is_no_utf8(tmp_path):
    name = os.fsdecode(b"bad\xff.png") if os.name != "nt" else "bad\udcff.png"
    assert link_to(tmp_path / name, tmp_path) in ("bad%FF.png", "bad%ED%B3%BF.png")
