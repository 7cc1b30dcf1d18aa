"""BCP: mixing against hand-sized cases, what each term reaches, where the teacher starts, off is the baseline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn
from toy import run_toy

from segdistill.engine.randomness import seed_everything
from segdistill.engine.trainer import Trainer
from segdistill.losses.segmentation import dice_cross_entropy
from segdistill.methods import METHODS, bcp
from segdistill.methods.bcp import BCP, BCPConfig, cycled, halves, largest_components, random_box
from segdistill.types import Batch, Task, UserError

TASK = Task(2, (32, 32), ("",), 6, 4)


def trained(folder, name="bcp", iterations=5, **settings):
    seed_everything(0)
    method = METHODS[name](METHODS[name].Config(**settings), TASK)
    run_toy(method, folder, iterations=iterations, validate_every=iterations)
    return method


def batch(labelled=2, others=2, classes=2, size=(32, 32)):
    """Row i of the image is i + 1 tenths everywhere."""
    torch.manual_seed(0)
    rows = labelled + others
    image = torch.arange(1, rows + 1)[:, None, None, None].expand(rows, 3, *size) / 10
    mask = torch.randint(0, classes, (rows, *size))
    known, zeros = torch.arange(rows) < labelled, torch.zeros(rows, dtype=torch.long)
    everything = torch.ones(rows, classes, dtype=torch.bool)
    return Batch(image, None, mask, known, everything, zeros, torch.arange(rows))


class Watched(nn.Module):
    """Remembers what it was shown; its logits are drawn once and trained."""

    def __init__(self, classes=2, size=(32, 32)):
        super().__init__()
        torch.manual_seed(7)
        self.logits = nn.Parameter(torch.randn(12, classes, *size))
        self.shown = []

    def forward(self, image, modality=None):
        self.shown.append(image)
        return self.logits[: len(image)]


def watched(classes=2, size=(32, 32), **settings):
    """A BCP of two such networks; the teacher's logits are others."""
    method = BCP(BCPConfig(**settings), Task(classes, size, ("",), 6, 4))
    method.student, method.teacher.network = Watched(classes, size), Watched(classes, size).requires_grad_(False)
    with torch.no_grad():
        method.teacher.network.logits.copy_(method.student.logits.flip(0))
    return method


def upper_left(height, width):
    box = torch.zeros(height, width, dtype=torch.bool)
    box[:2, :3] = True
    return box


def test_without_pseudo_labels_it_is_supervised_bit_for_bit(tmp_path):
    plain = trained(tmp_path / "plain", "supervised", batch_size=3).student.state_dict()
    other = trained(tmp_path / "other", labelled_batch=3, unsupervised=0.0).student.state_dict()
    assert plain.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in plain.items())
    on = trained(tmp_path / "on", labelled_batch=3, other_batch=2).student.state_dict()
    assert any(not torch.equal(value, on[key]) for key, value in plain.items())


def test_images_are_mixed_both_ways(monkeypatch):
    """Labelled rows .1 .2, others .3 .4: in_u is .3 with .1 in the box, in_l is .2 with .4 in it."""
    monkeypatch.setattr(bcp, "random_box", upper_left)
    method = watched()
    method.step(batch(), 0.5)
    (mixed,) = method.student.shown
    corner = mixed[:, 0, :3, :4]
    u = [[0.1, 0.1, 0.1, 0.3], [0.1, 0.1, 0.1, 0.3], [0.3, 0.3, 0.3, 0.3]]
    l_ = [[0.4, 0.4, 0.4, 0.2], [0.4, 0.4, 0.4, 0.2], [0.2, 0.2, 0.2, 0.2]]
    torch.testing.assert_close(corner, torch.tensor([u, l_]))
    assert [image[:, 0, 0, 0].tolist() for image in method.teacher.network.shown] == [pytest.approx([0.3, 0.4])]


def test_labelled_images_are_mixed_with_each_other(monkeypatch):
    monkeypatch.setattr(bcp, "random_box", upper_left)
    method = watched()
    method.pretrain(batch(2, 2), 0.5)
    (mixed,) = method.student.shown
    torch.testing.assert_close(mixed[:, 0, :3, :4], torch.tensor([[[0.2] * 3 + [0.1]] * 2 + [[0.1] * 4]]))


@pytest.mark.parametrize(("classes", "size"), [(2, (32, 32)), (4, (32, 48))])
def test_the_loss_is_the_formula(monkeypatch, classes, size):
    """Oracle: each region cut out by boolean indexing, its S taken of the bare pixels."""
    monkeypatch.setattr(bcp, "random_box", upper_left)
    method = watched(classes, size)
    given_ = batch(2, 2, classes, size)
    box, z, label = upper_left(*size), method.student.logits, method.teacher.network.logits.argmax(1)

    def part(logits, target, region):
        every = torch.ones(1, classes, dtype=torch.bool)
        return dice_cross_entropy(logits[:, region][None, ..., None], target[region][None, :, None], every[:, 0], every)

    expected = {
        "sup_u": part(z[0], given_.mask[0], box),
        "pseudo_u": part(z[0], label[0], ~box),
        "sup_l": part(z[1], given_.mask[1], ~box),
        "pseudo_l": part(z[1], label[1], box),
    }
    output = method.step(given_, 0.5)
    assert output.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.terms[name], value)
    e = expected
    total = (e["sup_u"] + 0.5 * e["pseudo_u"] + e["sup_l"] + 0.5 * e["pseudo_l"]) / 2
    torch.testing.assert_close(output.loss, total)
    first = method.pretrain(given_, 0.5)
    torch.testing.assert_close(first.terms["sup_a"], part(z[0], given_.mask[0], ~box))
    torch.testing.assert_close(first.terms["sup_b"], part(z[0], given_.mask[1], box))
    torch.testing.assert_close(first.loss, (first.terms["sup_a"] + first.terms["sup_b"]) / 2)


def test_a_term_reaches_its_own_pixels_of_its_own_rows_only(monkeypatch):
    monkeypatch.setattr(bcp, "random_box", upper_left)
    method = watched()
    terms = method.step(batch(), 0.5).terms
    box = upper_left(32, 32)
    for name, row, region in (("sup_u", 0, box), ("pseudo_u", 0, ~box), ("sup_l", 1, ~box), ("pseudo_l", 1, box)):
        (grad,) = torch.autograd.grad(terms[name], method.student.logits, retain_graph=True)
        reached = grad.abs().sum(1) > 0
        assert reached[row].equal(region)
        assert reached.sum() == region.sum()


def test_pseudo_labels_carry_no_gradient():
    method = BCP(BCPConfig(), TASK)
    method.teacher.requires_grad_(True)  # even if somebody let it train
    method.step(batch(), 0.5).loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.student.parameters())


def test_a_class_that_a_row_does_not_annotate_gets_no_label_and_no_loss(monkeypatch):
    """Row 0, labelled, and row 2, its host, know three of four classes; the other mixed image knows all."""
    monkeypatch.setattr(bcp, "random_box", upper_left)
    method = watched(classes=4)
    given_ = batch(classes=4)
    classes = given_.classes.clone()
    classes[[0, 2], 3] = False
    given_ = given_._replace(classes=classes, mask=given_.mask.clamp(max=2))
    assert method.pseudo_label(given_, torch.tensor([2, 3])).flatten(1).amax(1).tolist() == [2, 3]
    method.step(given_, 0.5).loss.backward()
    assert not method.student.logits.grad[0, 3].any()
    assert method.student.logits.grad[1, 3].any()


@pytest.mark.parametrize(("labelled", "others"), [(1, 1), (3, 1), (1, 4), (5, 2), (2, 3)])
def test_any_mix_of_rows_uses_every_row(monkeypatch, labelled, others):
    monkeypatch.setattr(bcp, "random_box", upper_left)
    method = watched()
    assert torch.isfinite(method.step(batch(labelled, others), 0.5).loss)
    (mixed,) = method.student.shown
    seen = {round(10 * value) for value in torch.cat([mixed[:, 0, 0, 0], mixed[:, 0, -1, -1]]).tolist()}
    assert seen == set(range(1, labelled + others + 1))


def test_without_other_rows_it_goes_on_as_in_pre_training():
    method = BCP(BCPConfig(), TASK)
    seed_everything(1)
    output = method.step(batch(3, 0), 0.5)
    seed_everything(1)
    assert torch.equal(output.loss, method.pretrain(batch(3, 0), 0.5).loss)
    assert output.terms.keys() == {"sup_a", "sup_b"}


def test_the_budget_holds_pre_training():
    assert [(s.name, s.iterations, s.batch) for s in BCP(BCPConfig(), TASK).stages()] == [
        ("pretrain", 750, (12, 0)),
        ("bcp", 2250, (12, 12)),
    ]
    assert [s.name for s in BCP(BCPConfig(pretrain=1.0), TASK).stages()] == ["pretrain"]
    assert [(s.name, s.iterations) for s in BCP(BCPConfig(unsupervised=0), TASK).stages()] == [("bcp", 3000)]
    for share in (0, 1.5):
        with pytest.raises(UserError, match=r"--bcp.pretrain .*: needs a share"):
            BCP.require(BCPConfig(pretrain=share))
    for config in (BCPConfig(pretrain=1.0), BCPConfig(pretrain=1.0, unsupervised=0, sam="tiny")):
        assert BCP.require(config) == config


@pytest.mark.parametrize("share", [1.0, 0.9999])
def test_a_sam_that_would_never_teach_is_refused(share):
    """0.9999 of 3,000 updates are all of them."""
    with pytest.raises(UserError, match=r"--bcp\.sam tiny: SAM teaches after pre-training"):
        BCP.require(BCPConfig(pretrain=share, sam="tiny"))
    BCP.require(BCPConfig(pretrain=0.9, sam="tiny"))


def test_both_start_from_the_pre_trained_weights(tmp_path, monkeypatch):
    """At the second stage's first step student and teacher are alike, and not what they were made as."""
    seen, stages = {}, BCP.stages

    def watched(method):
        first, second = stages(method)

        def step(given_, progress):
            if not seen:
                seen.update(student=copied(method.student), teacher=copied(method.teacher.network))
            return second.step(given_, progress)

        return [first, replace(second, step=step)]

    def copied(network):
        return {key: value.detach().clone() for key, value in network.state_dict().items()}

    monkeypatch.setattr(BCP, "stages", watched)
    method = trained(tmp_path / "run", iterations=8)
    seed_everything(0)
    made = BCP(BCPConfig(), TASK).student.state_dict()
    parameters = dict(method.student.named_parameters())
    assert seen["student"].keys() == seen["teacher"].keys()
    assert all(torch.equal(value, seen["teacher"][key]) for key, value in seen["student"].items())
    assert all(not torch.equal(seen["teacher"][key], made[key]) for key in parameters if "weight" in key)
    assert any(not torch.equal(p, seen["teacher"][key]) for key, p in parameters.items())


class Killed(BaseException):
    """The process ends here."""


def resumable(folder):
    """Four updates of pre-training and twelve after it, or what of them is left."""
    seed_everything(0)
    method = BCP(BCPConfig(labelled_batch=2, other_batch=2), TASK)
    log = run_toy(method, folder, iterations=16, validate_every=4)
    return method.state_dict(), log


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return resumable(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("last", [3, 6, 10])  # in pre-training, before the first checkpoint after it, later
def test_resumed_is_uninterrupted_in_either_stage(tmp_path, monkeypatch, whole, last):
    update, calls = Trainer._update, []

    def dying(self, stage):
        calls.append(stage.name)
        if len(calls) > last:
            raise Killed
        update(self, stage)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", dying)
        with pytest.raises(Killed):
            resumable(tmp_path / "cut")
    assert calls[-1] == ("pretrain" if last < 4 else "bcp")
    again = resumable(tmp_path / "cut")
    assert whole[1] == again[1]
    assert all(torch.equal(value, again[0][key]) for key, value in whole[0].items())


def test_sam_teaches_the_student_after_pre_training():
    """L_SAM reaches SAM alone, KD the student alone; the method's own terms stay as they are."""
    seed_everything(0)
    plain = BCP(BCPConfig(), TASK)
    seed_everything(0)
    method = BCP(BCPConfig(sam="tiny"), TASK)
    seed_everything(1)
    before = plain.step(batch(), 0.6).terms
    seed_everything(1)
    terms = method.step(batch(), 0.6).terms
    assert terms.keys() == {*before, "sam", "kd", "mu"}
    assert torch.equal(before["sup_u"], terms["sup_u"])
    parts = {"student": list(method.student.parameters()), "sam": list(method.sam.parameters())}
    for term, reached in (("sam", "sam"), ("kd", "student")):
        for name, parameters in parts.items():
            grads = torch.autograd.grad(terms[term], parameters, retain_graph=True, allow_unused=True)
            assert any(g is not None and g.abs().max() > 0 for g in grads) == (name == reached)
    assert [len(stage.optimizers) for stage in method.stages()] == [1, 2]
    method.stages()[1].after_update(0.0)
    assert method.sam.standing.updates == 1
    off = BCP(BCPConfig(sam="tiny", unsupervised=0.0), TASK)
    assert off.step(batch(), 0.6).terms.keys() == {"sup", "sam", "kd", "mu"}
    assert [stage.batch for stage in off.stages()] == [(12, 12)]


@given(st.integers(0, 1000), st.integers(2, 70), st.integers(2, 70))
def test_a_box_has_two_thirds_of_each_side(seed, height, width):
    torch.manual_seed(seed)
    box = random_box(height, width)
    rows, columns = box.any(1), box.any(0)
    assert (int(rows.sum()), int(columns.sum())) == (2 * height // 3, 2 * width // 3)
    assert box.sum() == rows.sum() * columns.sum()


def test_a_box_comes_everywhere():
    torch.manual_seed(0)
    assert {int(random_box(9, 9).any(1).nonzero()[0]) for _ in range(100)} == {0, 1, 2, 3}


def test_halves_have_one_length():
    assert [[half.tolist() for half in halves(torch.arange(n))] for n in (1, 2, 3)] == [
        [[0], [0]],
        [[0], [1]],
        [[0, 1], [1, 2]],
    ]
    assert cycled(torch.tensor([5, 6]), 5).tolist() == [5, 6, 5, 6, 5]


def test_the_largest_component_of_each_class_stays():
    """Corners touch; a class that is not there stays away."""
    # fmt: off
    label = torch.tensor([[[1, 0, 0, 2, 2],
                           [0, 1, 0, 0, 0],
                           [0, 0, 0, 0, 2],
                           [1, 0, 0, 2, 2]]])
    wanted = torch.tensor([[[1, 0, 0, 0, 0],
                            [0, 1, 0, 0, 0],
                            [0, 0, 0, 0, 2],
                            [0, 0, 0, 2, 2]]])
    # fmt: on
    assert largest_components(label).equal(wanted)
    assert largest_components(0 * label).equal(0 * label)


def test_largest_components_of_noise_are_scipys_one_by_one():
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (3, 12, 15)))
    for row, kept in zip(label.numpy(), largest_components(label).numpy(), strict=True):
        for k in (1, 2, 3):
            found, count = ndimage.label(row == k, np.ones((3, 3)))
            sizes = ndimage.sum_labels(row == k, found, range(1, count + 1))
            assert (kept == k).sum() == sizes.max()
            assert len(set(found[kept == k])) == 1


def test_largest_component_acts_on_pseudo_labels():
    given_, rows = batch(), torch.tensor([2, 3])
    plain, kept = (watched(largest_component=on).pseudo_label(given_, rows) for on in (False, True))
    assert kept.equal(largest_components(plain))
    assert not kept.equal(plain)
