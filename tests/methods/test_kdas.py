"""KDAS: what each setting adds to the loss, whom it reaches, and who may teach."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import run_toy, toy_data

from segdistill.api.train import resume
from segdistill.cli import main
from segdistill.deploy.artefact import Card, load_student, save_student
from segdistill.engine.checkpoint import stored_state
from segdistill.engine.plan import rescaled, set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.losses.attention import attention_loss, released_symmetric_loss, row_attention, symmetric_loss
from segdistill.losses.distillation import distillation_kl
from segdistill.losses.structure import released_structure_loss, structure_loss
from segdistill.methods.kdas import DISTILLED, KDAS, KDASConfig
from segdistill.methods.kdas_remarks import drawn, sentences
from segdistill.models.polyp_pvt import PolypPVT, enlarged
from segdistill.models.polyp_pvt_official import NAMES
from segdistill.models.students import build_student
from segdistill.models.teachers import load_teacher
from segdistill.transforms.presets import weak_turned
from segdistill.types import Batch, Clip, Task, UserError

SIZE = 64


def task(classes=2, size=(SIZE, SIZE), **other):
    return Task(classes, size, **{"modalities": ("",), "labelled": 6, "others": 4} | other)


def build(classes=2, size=(SIZE, SIZE), **settings):
    seed_everything(0)
    return KDAS(KDASConfig(teacher_backbone="b0", **settings), task(classes, size))


def batch(labelled=2, others=2, classes=2, size=(SIZE, SIZE)):
    torch.manual_seed(0)
    rows = labelled + others
    image = torch.rand(rows, 3, *size)
    mask = (classes * image.mean(1)).long().clamp(max=classes - 1)
    known, zeros = torch.arange(rows) < labelled, torch.zeros(rows, dtype=torch.long)
    every = torch.ones(rows, classes, dtype=torch.bool)
    return Batch(image, None, mask, known, every, zeros, torch.arange(rows))


def at_last_stage(method):
    last = method.stages()[-1]
    set_trainable(method, last.optimizers)
    return last


def test_a_run_goes_on_from_another_folder_with_a_teacher_named_from_here(unet_run, tiny_set, tmp_path, monkeypatch):
    folder, _ = unet_run
    monkeypatch.chdir(folder.parent)
    made = ["--method", "kdas", "--kdas.teacher", folder.name, "--kdas.labelled-batch=2", "--kdas.unlabelled=false"]
    fast = ["--size", "64", "--iterations", "2", "--precision", "32", "--cache", str(tmp_path / "cache")]
    assert main(["train", str(tiny_set), "--out", str(tmp_path / "run"), *made, *fast]) == 0
    (tmp_path / "run" / "report.html").unlink()
    scores = (tmp_path / "run" / "scores.csv").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run"]) == 0
    assert (tmp_path / "run" / "scores.csv").read_bytes() == scores
    assert (tmp_path / "run" / "students" / "control" / "student.json").exists()
    folder.rename(folder.with_name("anderswo"))
    (tmp_path / "run" / "report.html").unlink()
    with pytest.raises(UserError, match="is not there; if it was moved, mend its path"):
        resume(tmp_path / "run")


@pytest.mark.parametrize("distil", DISTILLED)
def test_a_control_adds_its_terms_and_nothing_else(distil):
    method = build(distil=distil, unlabelled=False)
    stages = method.stages()
    assert [s.name for s in stages] == (["student"] if distil == "none" else ["teacher", "control", "student"])
    assert all(s.scales == (0.75, 1.0, 1.25) and s.clip == Clip(value=0.5) and s.batch == (16, 0) for s in stages)
    last = at_last_stage(method)
    output = last.step(batch(3, 0), 0.5)
    assert set(output.terms) == {"seg", *DISTILLED[distil]}
    weighted = [(0.7 if name == "seg" else 0.3) * value for name, value in output.terms.items()]
    torch.testing.assert_close(output.loss, sum(weighted))


def test_the_default_is_the_formula():
    method = build(unlabelled=False)
    at_last_stage(method)
    method.eval()  # without drop path both passes agree
    b = batch(3, 0)
    s, t = method.student.explain(b.image), method.teacher.explain(b.image)
    terms = method.step(b, 0.5).terms
    target = b.mask, b.labelled, b.classes
    pairs = ((s.first, t.first), (s.second, t.second))
    torch.testing.assert_close(terms["seg"], sum(structure_loss(enlarged(a), *target) for a, _ in pairs))
    torch.testing.assert_close(terms["attention"], sum(attention_loss(a, b, 2.0) for a, b in pairs))
    torch.testing.assert_close(terms["symmetric"], sum(symmetric_loss(a, b) for a, b in pairs))


@pytest.mark.parametrize("distil", [name for name in DISTILLED if name != "none"])
def test_each_term_reaches_the_student_and_not_the_teacher(distil):
    method = build(distil=distil)
    at_last_stage(method)
    for parameter in method.teacher.parameters():
        parameter.requires_grad_(True)  # even if someone let it
    terms = method.step(batch(), 0.5).terms
    for name in terms.keys() - {"seg"}:
        method.zero_grad()
        terms[name].backward(retain_graph=True)
        assert method.student.backbone.layers[0].patch_embedding.proj.weight.grad.any()
        assert all(p.grad is None for p in method.teacher.parameters())
        heads = [h.weight.grad is not None and bool(h.weight.grad.any()) for h in method.student.heads]
        assert all(heads) == (name != "feature")
        assert all(p.weight.grad.any() for p in method.projections)  # of the feature control alone


def test_images_without_a_label_are_distilled_by_pixels_too():
    method = build()
    assert method.stages()[-1].batch == (16, 16)
    assert method.stages()[0].batch == (16, 0)
    at_last_stage(method)
    method.eval()
    b = batch(2, 2)
    output = method.step(b, 0.5)
    assert set(output.terms) == {"seg", "attention", "symmetric", "pixel"}
    z, t = method.student(b.image), method.teacher(b.image)
    torch.testing.assert_close(output.terms["pixel"], distillation_kl(z[2:], t[2:], 2.0))
    unknown = b._replace(labelled=torch.zeros(4, dtype=torch.bool))
    assert method.step(unknown, 0.5).terms["seg"] == 0
    assert build(distil="none").stages()[0].batch == (16, 0)


def test_a_class_that_a_row_does_not_annotate_gets_no_gradient():
    method = build(classes=3)
    at_last_stage(method)
    method.eval()
    b = batch(2, 2, classes=3)
    b.classes[:, 2] = False
    b = b._replace(mask=b.mask.clamp(max=1))
    method.step(b, 0.5).loss.backward()
    for head in method.student.heads:
        assert head.weight.grad[0].any()
        assert not head.weight.grad[1].any()


def test_as_released_is_the_released_loss_without_a_gradient_from_attention():
    """KDAS @ 647d51b: 0.7 seg + 0.3 (constant + MSE of P1's symmetric raw logits)."""
    method = build(as_released=True, unlabelled=False)
    at_last_stage(method)
    method.eval()
    b = batch(3, 0)
    s, t = method.student.explain(b.image), method.teacher.explain(b.image)
    output = method.step(b, 0.5)
    seg = sum(released_structure_loss(enlarged(x), b.mask, b.labelled, b.classes) for x in (s.first, s.second))
    sgm = released_symmetric_loss(enlarged(s.first)[:, 1:], enlarged(t.first)[:, 1:])
    grads = torch.autograd.grad(
        output.terms["attention"], list(method.student.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is None or not g.any() for g in grads)
    assert torch.isfinite(output.loss)
    wanted = torch.autograd.grad(0.7 * seg + 0.3 * sgm, method.student.heads[0].weight)
    found = torch.autograd.grad(output.loss, method.student.heads[0].weight)
    torch.testing.assert_close(found, wanted)


def test_as_released_other_rows_get_no_pixels():
    for released in (False, True):
        method = build(as_released=released)
        at_last_stage(method)
        assert ("pixel" in method.step(batch(2, 2), 0.5).terms) != released


def test_what_the_released_code_cannot_do_is_said():
    with pytest.raises(UserError, match="needs 2 classes and a square size, not 3 and 64 x 64"):
        build(classes=3, as_released=True)
    with pytest.raises(UserError, match="not 2 and 64 x 96"):
        build(size=(64, 96), as_released=True)
    with pytest.raises(UserError, match="no such control; choose one of none, pixel"):
        build(distil="everything")


@pytest.fixture
def unet_run(tmp_path):
    """A finished run whose student is a U-Net, with weights that are not those of a fresh one."""
    network = build_student("unet", classes=2)
    card = Card("unet", {"classes": 2}, "supervised", ("a", "b"), ((0, 0, 0),) * 2, (SIZE, SIZE), "")
    folder = tmp_path / "läufe" / "erster"
    folder.mkdir(parents=True)
    save_student(folder / "student", network, card)
    return folder, network.eval()


def student_folder(folder, name, classes=("a", "b"), **arguments):
    """A saved student of ours, and its network."""
    seed_everything(1)
    network = build_student(name, classes=len(classes), **arguments)
    colours = tuple((i, 0, 0) for i in range(len(classes)))
    made = {"classes": len(classes)} | arguments
    modalities = tuple(arguments.get("modalities", ("",)))
    save_student(folder, network, Card(name, made, "m", classes, colours, (SIZE, SIZE), "", modalities=modalities))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("knowsam_trio", {}), ("vnet", {}), ("polyp_pvt", {"backbone": "b1"}), ("esp_medsam", {"modalities": ["", "x"]})],
)
def test_each_of_our_students_teaches(tmp_path, name, arguments):
    """Three classes, not square, at every scale; its gradient is the student's alone."""
    names = ("background", "lung", "polyp")
    student_folder(tmp_path / "teacher", name, names, **arguments)
    method = build(3, (64, 96), teacher=str(tmp_path / "teacher"))
    last = at_last_stage(method)
    for scale in last.scales:
        output = last.step(rescaled(batch(2, 1, 3, (64, 96)), scale), 0.5)
        output.loss.backward()
        assert {"attention", "symmetric", "pixel"} <= output.terms.keys()
        assert all(torch.isfinite(term) for term in output.terms.values())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_a_teacher_of_modalities_is_told_its_own_numbers(tmp_path):
    network = student_folder(tmp_path / "t", "esp_medsam", modalities=["x-ray", "fundus", "ultrasound"])
    with torch.no_grad():
        for head in network.parameters():  # untrained controllers do nothing: let modalities differ
            head.add_(0.02 * torch.randn_like(head))
    save_student(tmp_path / "t", network, load_student(tmp_path / "t").card)
    network = load_student(tmp_path / "t").network  # in eval mode a trunk keeps what it made of its weights
    image, numbers = torch.rand(3, 3, 64, 64), torch.tensor([0, 1, 1])
    teacher = load_teacher(tmp_path / "t", task(modalities=("fundus", "x-ray")))
    with torch.no_grad():
        told, asked = network(image, torch.tensor([1, 0, 0])), network(image)
        assert (told - network(image, numbers)).abs().max() > 1e-3
        assert (told - asked).abs().max() > 1e-3
        torch.testing.assert_close(teacher(image, numbers), told)
        unknown = load_teacher(tmp_path / "t", task(modalities=("fundus", "endoscopy")))
        torch.testing.assert_close(unknown(image, numbers), asked)  # it finds the modality itself
    same = load_teacher(tmp_path / "t", task(modalities=("x-ray", "fundus", "ultrasound")))
    torch.testing.assert_close(same(image, numbers), network(image, numbers))


def test_classes_in_another_order_are_refused(tmp_path):
    student_folder(tmp_path / "t", "unet", ("background", "lung", "polyp"))
    with pytest.raises(UserError, match="number them as it does and name them --classes background,lung,polyp"):
        load_teacher(tmp_path / "t", task(3, names=("background", "polyp", "lung")))
    for names in (("lung", "tumour"), ("polyp", "lung"), ("liver", "polyp"), ("polyp", "class_2")):
        with pytest.raises(UserError, match="would teach"):
            load_teacher(tmp_path / "t", task(3, names=("background", *names)))
    same = ("background", "lung", "polyp"), ("bg", "lung", "class_2"), ("background", "class_1", "class_2"), ()
    for names in same:
        load_teacher(tmp_path / "t", task(3, names=names))


@pytest.mark.parametrize("other", [{"fit": "pad"}, {"neighbours": 1}])
def test_a_teacher_of_other_images_is_refused(unet_run, other):
    (option, value), *_ = other.items()
    with pytest.raises(UserError, match=f"would see other images here .*--{option} {value}"):
        load_teacher(unet_run[0], task(**other))


@pytest.mark.parametrize("size", [(64, 64), (27, 90), (100, 72)])
def test_any_student_teaches(unet_run, size):
    folder, network = unet_run
    method = build(teacher=str(folder), size=size)
    assert [s.name for s in method.stages()] == ["control", "student"]
    last = at_last_stage(method)
    b = batch(2, 1, size=size)
    t = method.taught(b.image, b.modality)
    s = method.student.explain(b.image)
    assert t.first.shape == s.first.shape
    assert torch.equal(t.first, t.second)
    shrunk = F.interpolate(b.image, (SIZE, SIZE), mode="bilinear", antialias=True)
    with torch.no_grad():
        z = F.interpolate(network(shrunk), size, mode="bilinear", antialias=True)
    torch.testing.assert_close(t.logits, z)
    torch.testing.assert_close(last.watched(b.image, b.modality)["teacher"], t.logits)
    torch.testing.assert_close(t.first[0, 0, 1, 2], (z[0, 1] - z[0, 0])[8:16, 16:24].mean())
    output = last.step(b, 0.5)
    output.loss.backward()
    assert torch.isfinite(output.loss)


class Sure(nn.Module):
    """Background everywhere, but for a stripe at the right edge of the image."""

    def forward(self, image, modality=None):
        z = torch.zeros(len(image), 2, *image.shape[-2:])
        z[:, 0], z[:, 1, :, -4:] = 6.0, 12.0
        return z


@pytest.mark.parametrize(("size", "grid"), [((100, 100), (16, 16)), ((24, 40), (8, 8)), ((64, 96), (8, 12))])
def test_beyond_the_image_a_teachers_edge_goes_on(size, grid):
    """The student pads to a multiple of 32, at least 64; the teacher is as sure there as at the edge of the image."""
    method = build()
    method.teacher = Sure()
    first = method.taught(torch.rand(1, 3, *size), torch.zeros(1, dtype=torch.long)).first[0, 0]
    row = torch.full((8 * grid[1],), -6.0)
    row[size[1] - 4 :] = 6.0
    assert torch.equal(first, row.view(-1, 8).mean(1).expand(grid))


@pytest.mark.parametrize("size", [(64, 64), (72, 100), (24, 24)])
def test_a_teacher_sees_images_at_its_own_size(unet_run, size):
    folder, network = unet_run
    seen = []
    teacher = load_teacher(folder, task())
    teacher.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2:]))
    logits = teacher(torch.rand(2, 3, *size))
    assert logits.shape == (2, 2, *size)
    assert seen == [(SIZE, SIZE)]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as the engine calls it: images come in bf16
        assert teacher(torch.rand(2, 3, *size).bfloat16()).dtype == torch.float32
    even = teacher(torch.full((1, 3, *size), 0.25))
    alone = network(torch.full((1, 3, SIZE, SIZE), 0.25))
    torch.testing.assert_close(even.mean((2, 3)), alone.mean((2, 3)), atol=0.02, rtol=0.02)


def test_a_given_teacher_is_frozen_and_not_stored(unet_run):
    method = build(teacher=str(unet_run[0] / "student"))
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    last = at_last_stage(method)
    assert not any(module.training for module in method.teacher.modules())
    last.step(batch(), 0.5).loss.backward()
    last.optimizers[0].step()
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())
    stored = {key for key in stored_state(method) if key.startswith("teacher.")}
    assert not stored & {f"teacher.{name}" for name, _ in method.teacher.named_parameters()}


def official_file(path):
    """A checkpoint of a random b0 in the layout of KDAS's code, but for the backbone's keys, which are the hub's."""
    back = {new: old for old, new in NAMES.items()}
    state = {}
    for key, value in build_student("polyp_pvt", classes=2, backbone="b0").state_dict().items():
        part, _, leaf = key.rpartition(".")
        hub = key.replace("backbone.layers.", "backbone.encoder.layers.")
        state[hub if key.startswith("backbone.") else f"{back[part]}.{leaf}"] = value
    torch.save(state, path)
    return path


def test_a_checkpoint_teaches_without_a_stage(tmp_path):
    method = build(teacher=str(official_file(tmp_path / "PolypPVT.pth")), distil="feature")
    assert isinstance(method.teacher, PolypPVT)
    assert [s.name for s in method.stages()] == ["control", "student"]
    assert torch.isfinite(at_last_stage(method).step(batch(), 0.5).loss)


def test_who_cannot_teach_is_said_in_one_line(unet_run, tmp_path):
    folder, _ = unet_run
    with pytest.raises(UserError, match="has 2 classes, the data have 3"):
        load_teacher(folder, task(3))
    with pytest.raises(UserError, match="feature needs a Polyp-PVT teacher"):
        build(teacher=str(folder), distil="feature")
    for path in (tmp_path, tmp_path / "nothing.pth"):
        with pytest.raises(UserError) as error:
            load_teacher(path, task())
        assert "\n" not in str(error.value)


def test_loading_a_teacher_does_not_disturb_the_seed(unet_run):
    state = torch.get_rng_state()
    load_teacher(unet_run[0], task())
    assert torch.equal(state, torch.get_rng_state())


def test_a_turned_image_keeps_its_mask():
    b = batch(6, 0)
    b = b._replace(image=b.mask[:, None].float().expand(-1, 3, -1, -1))
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        turned = weak_turned(b)
        seen.update(i for i in range(6) if not torch.equal(turned.image[i], b.image[i]))
        nearly = turned.image[:, 0] - turned.mask.float()
        assert nearly.abs().mean() < 0.35  # holes and interpolation aside
    assert seen
    wide = batch(2, 0, size=(32, 64))
    assert weak_turned(wide).image.shape == wide.image.shape


@pytest.mark.parametrize("scale", [0.75, 1.25])
def test_classes_and_shapes_beyond_the_paper(scale):
    method = build(classes=4, size=(64, 96))
    last = at_last_stage(method)
    b = rescaled(batch(2, 1, classes=4, size=(64, 96)), scale)
    output = last.step(b, 0.5)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_step_in_bf16_has_finite_gradients(classes):
    """And terms close to those in fp32, which are computed in fp32 from maps that are not."""
    method = build(classes, (64, 96))
    last = at_last_stage(method)
    method.eval()
    b = batch(2, 1, classes, (64, 96))
    exact = last.step(b, 0.5).terms
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = last.step(b, 0.5)
    output.loss.backward()
    assert all(term.dtype == torch.float32 for term in output.terms.values())
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.grad is not None)
    for name, term in output.terms.items():
        assert term.item() == pytest.approx(exact[name].item(), rel=0.1, abs=0.02)


def test_a_whole_run_trains_first_the_teacher_then_the_student(tmp_path):
    seed_everything(0)
    config = KDASConfig(teacher_backbone="b0", labelled_batch=2, other_batch=2)
    method = KDAS(config, Task(2, (SIZE, SIZE), ("",), 6, 4))
    fresh = {k: v.clone() for k, v in method.state_dict().items()}
    text = run_toy(method, tmp_path, toy_data(SIZE), iterations=4, validate_every=2).decode()
    assert '"teacher"' in text
    assert '"attention"' in text
    moved = {k.partition(".")[0] for k, v in method.state_dict().items() if not torch.equal(v, fresh[k])}
    assert moved == {"teacher", "control", "student"}
    entries = [json.loads(line) for line in text.splitlines()]
    remarks = method.cpu().eval().remarks(entries, batch(1, 1))
    best = {
        stage: max(e["validation"]["dice"] for e in entries if e["stage"] == stage and "validation" in e)
        for stage in ("teacher", "control", "student")
    }
    assert all(f"{dice:.3f}" in remarks.sentences[0] for dice in best.values())
    assert [picture.shape for _, picture in remarks.pictures] == [(SIZE, 4 * SIZE + 12, 3)] * 2
    assert method.students.keys() == {"teacher", "control"}


def test_the_control_is_the_student_without_a_teacher():
    """The same weights to begin with, the same step as `distil none`, the same plan but for images without a label."""
    method, alone = build(), build(distil="none")
    stages = {stage.name: stage for stage in method.stages()}
    assert build(control=False).students.keys() == {"teacher"}
    assert alone.students == {}
    assert "control" not in [stage.name for stage in build(control=False).stages()]
    assert all(map(torch.equal, method.control.state_dict().values(), method.student.state_dict().values()))
    assert all(map(torch.equal, method.control.state_dict().values(), alone.student.state_dict().values()))
    control, without = stages["control"], alone.stages()[0]
    for name in ("iterations", "batch", "augment", "scales", "schedule", "clip"):
        assert getattr(control, name) == getattr(without, name)
        assert getattr(control, name) == getattr(stages["student"], name) or name == "batch"
    for a, b in zip(control.optimizers, without.optimizers, strict=True):
        assert a.defaults == b.defaults
    set_trainable(method, control.optimizers)
    set_trainable(alone, without.optimizers)
    method.eval()
    alone.eval()
    given = batch(3, 0)
    assert torch.equal(control.step(given, 0.5).loss, without.step(given, 0.5).loss)


def entry(stage, dice, **watched):
    return {"stage": stage, "iteration": 1, "validation": {"dice": dice}} | ({"watched": watched} if watched else {})


def test_what_distillation_gained_is_said():
    log = [{"stage": "teacher", "loss": 1.0}, entry("teacher", 0.7), entry("teacher", 0.8), entry("teacher", 0.6)]
    log += [entry("control", 0.72), entry("control", 0.75), entry("student", 0.779), entry("student", 0.5)]
    told = " ".join(sentences(log))
    assert "0.800, the student's 0.779 at its best" in told
    assert "same schedule, 0.750" in told
    assert "Distillation gained 2.9 Dice points, of the 5.0 that the teacher was ahead." in told
    log[-2] = entry("student", 0.74)
    assert "Distillation gained nothing (-1.0 Dice points), though the teacher was 5.0 ahead." in " ".join(
        sentences(log)
    )


@pytest.mark.parametrize(("teacher", "ahead"), [(0.769, "+1.9"), (0.60, "-15.0")])
def test_a_teacher_that_is_not_ahead_has_nothing_to_distil(teacher, ahead):
    """A given teacher is not trained here: its Dice is what the student's validations watched."""
    log = [entry("control", 0.75), entry("student", 0.78, teacher=teacher)]
    told = " ".join(sentences(log))
    assert (
        f"Nothing to distil: the teacher is not 2 Dice points better than the student without distillation ({ahead})"
        in told
    )
    assert "the student is 3.0 points ahead of it" in told
    assert "Distillation gained" not in told


def test_without_a_control_no_gain_is_claimed():
    told = " ".join(sentences([entry("teacher", 0.8), entry("student", 0.9)]))
    assert "0.800" in told
    assert "What distillation gained is not known" in told
    assert list(sentences([entry("control", 0.8), {"stage": "student", "loss": 1.0}])) == []
    assert build(distil="none").remarks([entry("student", 0.8)], batch()).sentences == ()


def test_attention_is_drawn_as_it_is_lost():
    image = torch.rand(3, 64, 64)
    maps = [torch.randn(1, 8, 8), torch.randn(1, 8, 8)]
    picture = drawn(image, maps, 2.0)
    assert picture.shape == (64, 64 + 68 + 68, 3)  # a gap of 4 before each
    assert np.abs(picture[:, :64].transpose(2, 0, 1) - 255 * image.numpy()).max() <= 0.5
    a = torch.stack([row_attention(x[None], 2.0)[0, 0].exp() for x in maps])
    assert picture[:, 68:132].max() == 255 or picture[:, 136:].max() == 255
    assert picture[8 * 3 + 4, 68 + 8 * 5 + 4, 0] == pytest.approx(float(255 * a[0, 3, 5] / a.max()), abs=0.5)
    assert picture[8 * 6 + 4, 136 + 8 * 2 + 4, 1] == pytest.approx(float(255 * a[1, 6, 2] / a.max()), abs=0.5)
