"""Official files: the released numbers, merging, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fill import fill, make_input

from segdistill.models.esp_medsam_official import CHANNELS, load_mobile_sam, official_student
from segdistill.models.students import build_student
from segdistill.models.weights import read_weights
from segdistill.types import UserError

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "espmedsam.json").read_text(encoding="utf-8"))


def official_state(tag=""):
    """A checkpoint in the official layout; `tag` gives its controllers weights of their own."""
    return {
        key: torch.from_numpy(fill(key + (tag if "med_" in key or key.endswith("_med") else ""), tuple(shape)))
        for key, shape in REFERENCE["keys"].items()
    }


@pytest.fixture(scope="module")
def state():
    return official_state()


@pytest.fixture(scope="module")
def released(state):
    """As the reference: weights filled before eval()."""
    return official_student(dict.fromkeys(CHANNELS, state)).eval()


def agree(ours, wanted):
    assert list(ours.shape) == wanted["shape"]
    largest = max(abs(wanted["min"]), abs(wanted["max"]))
    np.testing.assert_allclose(ours.flatten()[wanted["idx"]], wanted["values"], atol=1e-4 * largest, rtol=0)


def reference_image(student):
    """The reference's input is what the network sees after its normalisation."""
    return torch.from_numpy(make_input(41, (1, 3, 1024, 1024))) * student.std + student.mean


def test_outputs_are_the_released_ones(released):
    """reference/espmedsam_1024 (ESP-MedSAM @ 9c3ade6, torch 2.13.0 CPU float32), one of the six channels."""
    with torch.no_grad():
        out = released.run(reference_image(released), torch.tensor([4]))
    agree(out.logits[:, 1:], REFERENCE["outputs"]["mask_d4"])
    agree(out.patch, REFERENCE["outputs"]["patch_map"])
    agree(out.embedding, REFERENCE["outputs"]["image_embeddings"])


@pytest.mark.shared
def test_all_six_channels_are_the_released_ones(released, shared):
    """All recorded values and the strided slices of ../shared/reference/espmedsam_1024."""
    outputs = json.loads((shared / "reference" / "espmedsam_1024.outputs.json").read_text(encoding="utf-8"))["outputs"]
    slices = np.load(shared / "reference" / "espmedsam_1024.npz")
    image = reference_image(released)
    with torch.no_grad():
        for modality in range(6):
            out = released.run(image, torch.tensor([modality]))
            agree(out.logits[:, 1:], outputs[f"mask_d{modality}"])
    agree(out.embedding, outputs["image_embeddings"])
    np.testing.assert_allclose(out.logits[:, 1:, ::16, ::16], slices["mask_d5_s16"], atol=2e-4)
    np.testing.assert_allclose(out.patch, slices["patch"], atol=2e-4)


def test_files_are_read_and_merged(tmp_path, state):
    """Two checkpoints with one trunk and head: each modality does what its own file alone would."""
    files = {"derm": state, "xray": official_state("x")}
    for name, content in files.items():
        torch.save({f"module.{key}": value for key, value in content.items()}, tmp_path / f"größe {name}.pth")
    read = {name: read_weights(tmp_path / f"größe {name}.pth") for name in files}
    merged = official_student(read).eval()
    assert merged.modalities == ("dermoscopy", "xray")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for i, name in enumerate(files):
            alone = official_student({name: files[name]}).eval()
            assert torch.equal(merged(image, torch.tensor([i])), alone(image))
        assert (merged(image, torch.tensor([0])) - merged(image, torch.tensor([1])))[:, 1].abs().max() > 1e-3


def test_heads_that_differ_are_named_or_kept_apart(state):
    tuned = official_state("x")
    tuned["patch_decoder.0.bias"] = tuned["patch_decoder.0.bias"] + 1
    tuned["mask_query.weight"] = -tuned["mask_query.weight"]
    files = {"dermoscopy": state, "fundus": tuned}
    with pytest.raises(UserError, match=r"differ between dermoscopy, fundus: .*patch_decoder\.0\.bias.*separate heads"):
        official_student(files)
    merged = official_student(files, separate_heads=True).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for i, name in enumerate(files):
            alone = official_student({name: files[name]}).eval()
            assert torch.equal(merged(image, torch.tensor([i, i])), alone(image))
        mixed = merged(image, torch.tensor([1, 0]))
        torch.testing.assert_close(mixed[1:], merged(image[1:], torch.tensor([0])), rtol=1e-3, atol=1e-3)


def test_trunks_that_differ_are_refused_with_separate_heads_too(state):
    other = state | {"SemiTViT.neck.0.weight": state["SemiTViT.neck.0.weight"] * 2}
    with pytest.raises(UserError, match=r"SemiTViT\.neck\.0\.weight; their trunks were trained apart"):
        official_student({"dermoscopy": state, "fundus": other}, separate_heads=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("mask_query.weight"), "lacks heads.0.joint.query"),
        (lambda s: s.update(extra=torch.ones(1)), "also has extra"),
        (
            lambda s: s.update({"patch_decoder.0.bias": torch.ones(3)}),
            r"other shapes in heads\.0\.prompt\.shared\.0\.bias",
        ),
    ],
)
def test_another_layout_is_refused(state, change, match):
    changed = dict(state)
    change(changed)
    with pytest.raises(UserError, match=match):
        official_student({"fundus": changed})


@pytest.mark.parametrize("name", ["mri", "", "m r"])
def test_an_unknown_modality_is_refused(state, name):
    with pytest.raises(UserError, match="give one of dermoscopy, xray"):
        official_student({name: state})


def test_mobile_sam_starts_the_trunk(tmp_path, state):
    """mobile_sam.pt: the same trunk under image_encoder.*, beside SAM's prompt encoder and decoder."""
    mobile = {
        key.replace("SemiTViT.", "image_encoder.").removesuffix("~"): value
        for key, value in state.items()
        if "med" not in key.split("SemiTViT")[-1] and not key.startswith(("patch", "dense", "mask_query"))
    }
    torch.save(mobile, tmp_path / "mobile_sam.pt")
    student = build_student("esp_medsam", classes=3, modalities=["a", "b"]).eval()
    before = {k: v.clone() for k, v in student.state_dict().items() if not k.startswith("trunk.")}
    load_mobile_sam(student, read_weights(tmp_path / "mobile_sam.pt"))
    after = student.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    official = official_student({"fundus": state}).state_dict()
    assert all(torch.equal(after[k], official[k]) for k in after if k.startswith("trunk."))
    with pytest.raises(UserError, match="not a MobileSAM file: it lacks trunk"):
        load_mobile_sam(student, {"image_encoder.neck.0.weight": mobile["image_encoder.neck.0.weight"]})


def test_what_is_not_weights_is_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "nested.pth")
    torch.save({"a": Path("x")}, tmp_path / "object.pth")
    for name, match in (
        ("missing.pth", "not a file"),
        ("text.pth", "cannot be read|named tensors"),
        ("object.pth", "cannot be read|named tensors"),
        ("nested.pth", "else than named tensors"),
    ):
        with pytest.raises(UserError, match=match) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)
