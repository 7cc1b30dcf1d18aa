"""Which images export measures and calibrates on."""

from dataclasses import replace

import pytest
from helpers import make_volumes
from test_evaluate import joint

from segdistill.api import export as api
from segdistill.api.data import saved_sets
from segdistill.data.splits import save_splits
from segdistill.formats import read_image
from segdistill.types import UserError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose two sets, A and B, are of modalities of their own, all their images for validation."""
    folder, card = joint(tmp_path)
    sources, parts = saved_sets(folder)
    for (name, source), part in zip(sources.items(), parts, strict=True):
        rows = [replace(row, split="val", modality=f"made of {name}") for row in part]
        save_splits(folder / "data" / "sets" / name / "splits.csv", rows, root=source.root)
    monkeypatch.setattr(api, "_samples", lambda rows, sources, card, among: list(rows))
    return folder, replace(card, modalities=("made of A", "made of B", "mri"))


@pytest.mark.parametrize("own", [True, False])
def test_a_file_of_one_modality_is_measured_on_its_images(run, tmp_path, own):
    folder, card = run

    def measured(modality):
        rows = api._own(folder, card, modality) if own else api._given(folder, tmp_path / "A", card, modality)
        return {row.modality for row in rows}

    assert measured("made of A") == {"made of A"}
    assert measured(None) == measured("unknown") == ({"made of A", "made of B"} if own else {"made of A"})
    with pytest.raises(UserError, match="--modality mri: none of these images is of it"):
        measured("mri")


def test_what_lies_in_a_run_is_measured_on_the_runs_own_images(run, tmp_path):
    folder, card = run
    (folder / "students" / "unet").mkdir(parents=True)
    for path in (folder / "student", folder / "students" / "unet"):
        assert len(api._own(path, card, None)) == 4
    assert api._own(tmp_path, card, None) == []


def test_volumes_are_calibrated_on_as_slices(tmp_path):
    volume, picture = next((make_volumes(tmp_path / "V", count=1) / "images").iterdir()), tmp_path / "a.png"
    found = api._slices([picture, volume])
    assert found == [picture, *(volume.with_name(f"{volume.name}#{k}") for k in range(len(found) - 1))]
    assert read_image(found[-1]).ndim == 3
