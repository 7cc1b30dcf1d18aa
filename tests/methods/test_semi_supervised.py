"""Mean Teacher and UniMatch: off they are the baseline; on, each term reaches what it should and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import run_toy

from segdistill.engine.randomness import seed_everything
from segdistill.methods import METHODS, unimatch
from segdistill.methods.unimatch import cutmix_boxes, mixed
from segdistill.models.students import STUDENTS, build_student
from segdistill.types import Batch, Task, UserError

TASK = Task(2, (32, 32), ("",), 6, 4)


def train(folder, name, **settings):
    seed_everything(0)
    method = METHODS[name](METHODS[name].Config(**settings), TASK)
    run_toy(method, folder, iterations=5, validate_every=5)
    return method.student.state_dict()


@pytest.mark.parametrize(("name", "off"), [("mean_teacher", "consistency"), ("unimatch", "unsupervised")])
def test_without_unsupervised_terms_it_is_supervised_bit_for_bit(tmp_path, name, off):
    plain = train(tmp_path / "plain", "supervised", batch_size=3)
    other = train(tmp_path / "other", name, labelled_batch=3, **{off: 0.0})
    assert plain.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in plain.items())
    on = train(tmp_path / "on", name, labelled_batch=3, other_batch=2)
    assert any(not torch.equal(value, on[key]) for key, value in plain.items())


@pytest.mark.parametrize(("name", "off"), [("mean_teacher", "consistency"), ("unimatch", "unsupervised")])
def test_sam_teaches_any_student(name, off):
    """L_SAM reaches SAM alone and KD the student alone; the method's own terms stay as they are."""
    size = Task(2, (32, 32), ("",), 6, 4)
    seed_everything(0)
    plain = METHODS[name](METHODS[name].Config(), size)
    seed_everything(0)
    method = METHODS[name](METHODS[name].Config(sam="tiny"), size)
    seed_everything(1)
    before = plain.step(batch(), 0.6).terms
    seed_everything(1)
    output = method.step(batch(), 0.6)
    assert set(output.terms) == {*before, "sam", "kd", "mu"}
    assert torch.equal(before["sup"], output.terms["sup"])
    parts = {"student": list(method.student.parameters()), "sam": list(method.sam.parameters())}
    for term, reached in (("sam", "sam"), ("kd", "student")):
        for part, parameters in parts.items():
            grads = torch.autograd.grad(output.terms[term], parameters, retain_graph=True, allow_unused=True)
            assert any(g is not None and g.abs().max() > 0 for g in grads) == (part == reached)
    assert len(method.stages()[0].optimizers) == 2
    stage = method.stages()[0]
    stage.after_update(0.0)
    assert method.sam.standing.updates == 1
    watched = stage.watched(torch.rand(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
    assert watched["sam"].shape == (1, 2, 32, 32)


@pytest.mark.parametrize("name", ["mean_teacher", "unimatch", "bcp"])
def test_the_report_says_whether_sam_had_anything_to_teach(name):
    log = [{"stage": name, "iteration": 9, "validation": {"dice": 0.6}, "watched": {"sam": 0.4}}]
    method = METHODS[name](METHODS[name].Config(sam="tiny"), TASK)
    assert "nothing to teach" in " ".join(method.remarks(log, batch()).sentences)
    assert METHODS[name](METHODS[name].Config(), TASK).remarks(log, batch()).sentences == ()


def batch(labelled=2, others=2):
    torch.manual_seed(0)
    rows = labelled + others
    image = torch.rand(rows, 3, 32, 32)
    everything = torch.ones(rows, 2, dtype=torch.bool)
    mask = (image.mean(1) > 0.5).long()
    known, zeros = torch.arange(rows) < labelled, torch.zeros(rows, dtype=torch.long)
    return Batch(image, (image + 0.1).clamp(0, 1), mask, known, everything, zeros, torch.arange(rows))


def test_mean_teacher_warms_up_on_labels_only():
    method = METHODS["mean_teacher"](METHODS["mean_teacher"].Config(consistency_from=0.1, consistency_full=0.4), TASK)
    assert set(method.step(batch(), 0.05).terms) == {"sup"}
    early, late = method.step(batch(), 0.2), method.step(batch(), 0.9)
    assert set(early.terms) == {"sup", "cons"}
    gap = (late.loss - late.terms["sup"]) / late.terms["cons"]
    assert gap.item() == pytest.approx(0.1, rel=1e-4)
    assert ((early.loss - early.terms["sup"]) / early.terms["cons"]).item() < 0.1


def test_mean_teacher_moves_the_student_only():
    method = METHODS["mean_teacher"](METHODS["mean_teacher"].Config(), TASK)
    with torch.no_grad():
        for p in method.teacher.network.parameters():
            p.mul_(0.5)  # at the start both agree
    method.step(batch(), 0.9).terms["cons"].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in method.student.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("apart", [True, False])
def test_mean_teacher_normalises_labelled_images_by_themselves(apart):
    """Their logits, and what batch norms remember, are those without others in the batch, whatever the order."""
    seen, whole = [], batch()
    for rows in ([0, 1], [2, 0, 3, 1]):
        seed_everything(1)
        method = METHODS["mean_teacher"](METHODS["mean_teacher"].Config(apart=apart), TASK).train()
        picked = whole._replace(image=whole.image[rows], modality=whole.modality[rows], labelled=whole.labelled[rows])
        z = method.logits(picked)[picked.labelled]
        seen.append((z, method.student.encoder[0][1].running_mean.clone()))
    assert all(torch.allclose(a, b, atol=1e-6) == apart for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("student", [*STUDENTS, "no_such_network"])
def test_unimatch_takes_the_students_whose_features_it_can_perturb(student):
    config = METHODS["unimatch"].Config(student=student)
    network = build_student(student, classes=2) if student in STUDENTS else None
    if hasattr(network, "encode") and hasattr(network, "decode"):
        assert METHODS["unimatch"].require(config) == config
        assert torch.isfinite(METHODS["unimatch"](config, TASK).step(batch(), 0.5).loss)
    else:
        with pytest.raises(UserError, match=f"--unimatch.student {student}: .*choose one of unet, vnet, polyp_pvt"):
            METHODS["unimatch"].require(config)


def test_unimatch_terms_come_from_confident_unlabelled_pixels_only():
    sure = METHODS["unimatch"].Config(threshold=0.0)
    none = METHODS["unimatch"].Config(threshold=1.1)
    assert all(method_term > 0 for k, method_term in METHODS["unimatch"](sure, TASK).step(batch(), 0.5).terms.items())
    terms = METHODS["unimatch"](none, TASK).step(batch(), 0.5).terms
    assert [float(terms[k].detach()) for k in ("fp", "s1", "s2")] == [0, 0, 0]
    assert set(METHODS["unimatch"](sure, TASK).step(batch(2, 0), 0.5).terms) == {"sup"}


def test_unimatch_gives_its_pseudo_label_no_gradient():
    """With the perturbed branches cut off nothing reaches the network: the label is not learnt from its own loss."""
    method = METHODS["unimatch"](METHODS["unimatch"].Config(threshold=0.0), TASK)
    decode, calls = method.student.decode, []

    def watched(features):
        logits = decode(features)
        calls.append(logits)
        return logits if len(calls) == 1 else logits.detach().requires_grad_()

    method.student.decode = watched
    output = method.step(batch(), 0.5)
    unsupervised = output.terms["fp"] + output.terms["s1"] + output.terms["s2"]
    grads = torch.autograd.grad(unsupervised, list(method.student.parameters()), allow_unused=True)
    assert all(g is None for g in grads)


def test_unimatch_trains_no_class_that_a_row_or_a_cut_mixed_pixel_does_not_annotate(monkeypatch):
    """Three classes; the first of two unlabelled rows knows 0 and 1, the second 0 and 2; s1 and s2 swap their tops."""
    top = torch.zeros(2, 32, 32, dtype=torch.bool)
    top[:, :16] = True
    monkeypatch.setattr(unimatch, "cutmix_boxes", lambda *_: top)
    method = METHODS["unimatch"](METHODS["unimatch"].Config(threshold=0.0), TASK._replace(classes=3))
    decode, logits = method.student.decode, []
    method.student.decode = lambda features: logits.append(decode(features)) or logits[-1]
    classes = torch.tensor([[True, True, True]] * 2 + [[True, True, False], [True, False, True]])
    terms = method.step(batch()._replace(classes=classes), 0.5).terms
    own = classes[2:, :, None, None].expand(-1, -1, 32, 32)
    swapped = torch.where(top[:, None], own.flip(0), own)
    _, z_fp, z_strong = logits
    for name, z, rows, known in (
        ("fp", z_fp, slice(0, 2), own),
        ("s1", z_strong, slice(0, 2), swapped),
        ("s2", z_strong, slice(2, 4), swapped),
    ):
        (grad,) = torch.autograd.grad(terms[name], z, retain_graph=True)
        assert torch.equal(grad[rows] != 0, known)


def test_mixing_takes_the_next_row_inside_the_box():
    values = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    box = torch.tensor([[[True, False], [False, False]]]).expand(3, 2, 2)
    assert mixed(values, box).tolist() == [[[2, 0], [0, 0]], [[0, 1], [1, 1]], [[1, 2], [2, 2]]]


@given(st.integers(0, 1000))
def test_boxes_are_boxes_of_a_bounded_area(seed):
    torch.manual_seed(seed)
    boxes = cutmix_boxes(8, 64, 96, 1.0)
    for box in boxes:
        rows, columns = box.any(1), box.any(0)
        assert box.sum() == rows.sum() * columns.sum()  # a full rectangle
        assert 0.01 < box.float().mean() < 0.45


def test_boxes_come_as_often_as_asked():
    torch.manual_seed(0)
    assert not cutmix_boxes(50, 32, 32, 0.0).any()
    share = cutmix_boxes(2000, 8, 8, 0.5).flatten(1).any(1).float().mean()
    assert 0.45 < share < 0.55
