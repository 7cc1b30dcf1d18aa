"""KnowSAM's prompted SAM: its numbers, its start, what trains, what reaches what."""

import copy
import json

import numpy as np
import pytest
import torch
from reference.fill import make_input
from sam_files import filled, mini_knowsam, mini_sam, saved

from segdistill.models.adapters import adapt
from segdistill.models.aggregation import Trio
from segdistill.models.knowsam_teacher import PROMPTS, knowsam_teacher
from segdistill.models.sam import load_sam
from segdistill.models.students import build_student
from segdistill.types import UserError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {
        "sam": saved(folder / "sam.pth", mini_sam()),
        "knowsam": saved(folder / "sam_best_model.pth", mini_knowsam(2)),
    }


def assert_values(actual, expected):
    assert list(actual.shape) == expected["shape"]
    largest = max(abs(expected["min"]), abs(expected["max"]))
    np.testing.assert_allclose(actual.flatten()[expected["idx"]], expected["values"], atol=1e-4 * largest)


def keys_of(shared, name):
    keys = json.loads((shared / "reference" / f"{name}.keys.json").read_text(encoding="utf-8"))["keys"]
    return filled({key: shape for key, (shape, _) in keys.items()})


@pytest.mark.shared
@pytest.mark.parametrize("classes", [2, 4])
def test_the_released_teacher_is_knowsams(shared, tmp_path, classes):
    """reference/knowsam_sam_cC (KnowSAM @ 5ceef5a, torch 2.13.0 CPU float32), prompted by knowsam_sgdl_cC's fusion."""
    expected = json.loads((shared / "reference" / f"knowsam_sam_c{classes}.outputs.json").read_text(encoding="utf-8"))
    expected = expected["outputs"]
    path = tmp_path / "sam_best_model.pth"
    teacher = knowsam_teacher(
        saved(path, keys_of(shared, f"knowsam_sam_c{classes}")), (256, 256), classes, prompts="tokens"
    ).eval()
    path.unlink()
    trio = build_student("knowsam_trio", classes=classes, corrects=False).eval()
    trio.load_state_dict(Trio.from_official(keys_of(shared, f"knowsam_sgdl_c{classes}")), strict=False)
    image = torch.from_numpy(make_input(21, (2, 3, 256, 256), "rand"))
    with torch.no_grad():
        z_f = trio(image)
        embedding = teacher.sam.encode(image)
        sparse, dense = teacher.prompt(embedding, z_f)
        low = teacher.sam.decode(embedding, sparse, dense)
        assert_values(embedding, expected["image_embeddings"])
        for c in range(classes):
            assert_values(sparse[c::classes], expected[f"sparse{c}"])
            assert_values(dense[c::classes], expected[f"dense{c}"])
            assert_values(low[c::classes].unsqueeze(1), expected[f"low_res{c}"])
        assert_values(teacher(image, z_f), expected["pred_sam"])


@pytest.mark.parametrize("name", ["tiny", "sam"])
def test_adapters_change_nothing_at_the_start(files, name):
    torch.manual_seed(0)
    sam = load_sam(files.get(name, name), (64, 96)).eval()
    adapted = copy.deepcopy(sam)
    adapt(adapted)
    image, sparse, dense = torch.rand(2, 3, 64, 96), torch.randn(6, 2, 256), torch.randn(6, 256, 4, 6)
    with torch.no_grad():
        embedding = sam.encode(image)
        torch.testing.assert_close(adapted.encode(image), embedding, atol=1e-6, rtol=1e-6)
        expected = sam.decode(embedding, sparse, dense)
        torch.testing.assert_close(adapted.decode(embedding, sparse, dense), expected, atol=1e-6, rtol=1e-6)
    assert sum(p.numel() for p in adapted.parameters()) > sum(p.numel() for p in sam.parameters())


def test_the_released_start_is_another():
    torch.manual_seed(0)
    teacher = knowsam_teacher("tiny", (64, 64), 2, as_released=True)
    assert all(m.up.weight.abs().max() > 0 for m in teacher.modules() if hasattr(m, "up"))
    assert not any("rel_pos" in name for name, _ in teacher.named_parameters())
    assert all(block.block.cut_first for block in teacher.sam.vision_encoder.layers)
    assert teacher.sam.mean.abs().max() == 0


def test_the_dense_map_starts_at_nothing_and_then_speaks():
    torch.manual_seed(0)
    full = knowsam_teacher("tiny", (64, 64), 3).eval()
    tokens = knowsam_teacher("tiny", (64, 64), 3, prompts="tokens").eval()
    tokens.load_state_dict(full.state_dict(), strict=False)
    image, z_f = torch.rand(2, 3, 64, 64), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(full(image, z_f), tokens(image, z_f), atol=1e-6, rtol=1e-6)
        full.prompts.dense[1].weight.normal_()
        changed = (full(image, z_f) - tokens(image, z_f)).abs().amax((0, 2, 3))
    assert changed[1] > 1e-3
    assert changed[[0, 2]].max() < 1e-6


def test_with_weights_only_adapters_and_prompts_train(files):
    torch.manual_seed(0)
    teacher = knowsam_teacher(files["sam"], (64, 64), 2).train()
    trained = {name for name, p in teacher.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in teacher.named_parameters() if ".after." in n or ".beside." in n or "prompts." in n}
    assert all(p.frozen for n, p in teacher.named_parameters() if n not in trained)
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    optimizer = torch.optim.Adam([p for p in teacher.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):  # the first moves what starts at zero, the second what is behind it
        optimizer.zero_grad()
        teacher(torch.rand(2, 3, 64, 64), torch.randn(2, 2, 64, 64)).square().mean().backward()
        optimizer.step()
    moved = {name for name, p in teacher.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained
    # Batch norm takes away what is constant: the bias of the convolution before it has no effect.
    assert all(name.endswith("bias") for name in trained - moved)
    assert len(optimizer.state) == len(trained)


def test_without_weights_all_of_it_trains():
    torch.manual_seed(0)
    teacher = knowsam_teacher("tiny", (64, 64), 2).train()
    teacher(torch.rand(2, 3, 64, 64), torch.randn(2, 2, 64, 64)).square().mean().backward()
    idle = {name for name, p in teacher.named_parameters() if p.grad is None}
    # Points, boxes, "no mask", the three other masks and the quality have no part in one mask per prompt.
    parts = ("point_embed", "not_a_point", "no_mask_embed", "hypernetworks_mlps", "iou_prediction_head")
    assert all(any(part in name for part in parts) for name in idle)
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize(("classes", "size"), [(2, (64, 64)), (3, (64, 112)), (5, (96, 64))])
def test_any_number_of_classes_any_shape(prompts, classes, size):
    torch.manual_seed(0)
    teacher = knowsam_teacher("tiny", size, classes, prompts=prompts).eval()
    image, z_f = torch.rand(2, 3, *size), torch.randn(2, classes, *size, requires_grad=True)
    z_s = teacher(image, z_f)
    assert z_s.shape == z_f.shape
    z_s.sum().backward()
    assert z_f.grad is None  # the mask prompt is detached
    with torch.no_grad():
        other = z_f.clone()
        other[0, 1] += 5  # image 0, class 1
        changed = (teacher(image, other) - z_s).abs().amax((2, 3)) > 1e-6
    expected = torch.zeros(2, classes, dtype=torch.bool)
    expected[0, 1] = PROMPTS[prompts].mask
    assert torch.equal(changed, expected)


def test_without_prompts_it_still_knows_which_class_is_meant():
    torch.manual_seed(0)
    teacher = knowsam_teacher("tiny", (64, 64), 3, prompts="none")
    z_s = teacher(torch.rand(2, 3, 64, 64), torch.zeros(2, 3, 64, 64))
    assert all((z_s[:, a] - z_s[:, b]).abs().amax() > 1e-4 for a, b in ((0, 1), (0, 2), (1, 2)))
    z_s.softmax(1)[:, 1].sum().backward()
    assert teacher.named.grad.any()
    assert teacher.sam.vision_encoder.patch_embed.projection.weight.grad.any()


def test_a_checkpoint_of_knowsam_is_run_as_released(files, tmp_path):
    teacher = knowsam_teacher(files["knowsam"], (256, 256), 2, prompts="tokens")
    official = mini_knowsam(2)
    state = teacher.state_dict()
    for ours, theirs in (
        ("sam.vision_encoder.layers.2.after.up.weight", "image_encoder.blocks.2.Space_Adapter.D_fc2.weight"),
        ("sam.vision_encoder.layers.2.beside.down.bias", "image_encoder.blocks.2.MLP_Adapter.D_fc1.bias"),
        ("sam.mask_decoder.transformer.after.down.weight", "mask_decoder.transformer.Space_Adapter.D_fc1.weight"),
        ("prompts.classes.1.tokens.3.bias", "super_prompt.box_decoder.1.ffn.3.bias"),
    ):
        assert torch.equal(state[ours], official[theirs]), ours
    assert teacher.sam.mean.abs().max() == 0
    with pytest.raises(UserError, match=r"not for 3 classes .* give a checkpoint of the same classes") as error:
        knowsam_teacher(files["knowsam"], (256, 256), 3)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="adapted SAM of KnowSAM"):
        load_sam(files["knowsam"], (256, 256))


def test_too_small_an_image_is_refused():
    with pytest.raises(UserError, match="at least 64 x 64, not 48 x 64"):
        knowsam_teacher("tiny", (48, 64), 2)
