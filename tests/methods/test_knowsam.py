"""KnowSAM: what reaches what, what is off when it is off, UGDA by hand, and each row of released vs paper."""

import traceback

import numpy as np
import pytest
import torch
from sam_files import mini_sam, saved
from torch.utils._python_dispatch import TorchDispatchMode
from toy import run_toy

from segdistill.engine.randomness import seed_everything
from segdistill.methods.knowsam import KnowSAM, KnowSAMConfig
from segdistill.methods.sam_distillation import SamDistillation, Skd, sam_size
from segdistill.methods.standing import Standing, pooled_dice
from segdistill.methods.ugda import drawn, partners, uncertain_cells
from segdistill.models.aggregation import HybridAggregation
from segdistill.models.statistics import untracked_statistics
from segdistill.types import Batch, Task, UserError

TASK = Task(2, (32, 32), ("",), 6, 4)
OFF = {"kd": "none", "entropy_weight": 0.0, "agreement": "none", "mix_cells": 0}


def build(classes=2, size=(32, 32), **settings):
    seed_everything(0)
    config = KnowSAMConfig(**{"teacher": "tiny", "mix_confidence": 0.0, **settings})
    return KnowSAM(config, Task(classes, size, ("",), 6, 4))


def batch(labelled=2, others=3, classes=2, size=(32, 32)):
    torch.manual_seed(0)
    rows = labelled + others
    image = torch.rand(rows, 3, *size)
    mask = torch.randint(0, classes, (rows, *size))
    known = torch.arange(rows) < labelled
    zeros = torch.zeros(rows, dtype=torch.long)
    return Batch(
        image, None, mask * known[:, None, None], known, torch.ones(rows, classes, dtype=torch.bool), zeros, zeros
    )


def reached(method, term):
    """Which parts a term's gradient reaches."""
    parts = {"unet": method.trio.unet, "vnet": method.trio.vnet, "ham": method.trio.aggregation, "sam": method.sam}
    named = {name: list(part.parameters()) for name, part in parts.items() if part}
    flat = [p for parameters in named.values() for p in parameters]
    grads = dict(zip(map(id, flat), torch.autograd.grad(term, flat, retain_graph=True, allow_unused=True), strict=True))
    moved = {n: any((g := grads[id(p)]) is not None and g.abs().max() > 0 for p in ps) for n, ps in named.items()}
    return {name for name, hit in moved.items() if hit}


TRIO = {"unet", "vnet", "ham"}
REACHED = {
    "unet": {"unet"},
    "vnet": {"vnet"},
    "fusion": TRIO,  # not detached, as released
    "sam": {"sam"},  # the mask prompt is detached
    "kd": {"unet", "vnet"},
    "entropy": {"unet", "vnet"},
    "consistency": {"unet", "vnet"},
    "mix_sup": {"unet", "vnet"},
    "mix_fusion": TRIO,
    "mix_entropy": {"unet", "vnet"},
    "mix_consistency": {"unet", "vnet"},
    "mix_pseudo": {"unet", "vnet"},
}


@pytest.mark.parametrize("classes", [2, 4])
def test_every_term_reaches_what_it_should_and_nothing_else(classes):
    method = build(classes)
    output = method.step(batch(classes=classes), 0.6)
    assert 0 <= output.terms.pop("mu") <= 1  # a weight, without gradient
    assert {name: reached(method, term) for name, term in output.terms.items()} == REACHED


def test_one_backward_is_that_of_each_learner():
    """Subnets and SAM meet only through detach(): the sum's gradient is each learner's own."""
    method = build()
    output = method.step(batch(), 0.6)
    sam = list(method.sam.parameters())
    whole = torch.autograd.grad(output.loss, sam, retain_graph=True, allow_unused=True)
    own = torch.autograd.grad(output.terms["sam"], sam, retain_graph=True, allow_unused=True)
    for a, b in zip(whole, own, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_only_supervised_terms_act_at_first():
    method = build()
    assert set(method.step(batch(), 0.1).terms) == {"unet", "vnet", "fusion", "sam"}
    assert "mix_sup" not in method.step(batch(), 0.2).terms
    assert "kd" in method.step(batch(), 0.2).terms


def trained(folder, **settings):
    seed_everything(0)
    config = KnowSAMConfig(labelled_batch=3, other_batch=2, warm_up=1, **settings)
    method = KnowSAM(config, TASK)
    run_toy(method, folder, iterations=4, validate_every=4)
    return method.trio.state_dict()


def test_without_unsupervised_terms_it_is_the_supervised_trio_bit_for_bit(tmp_path):
    plain = trained(tmp_path / "plain", teacher="none", **OFF)
    beside = trained(tmp_path / "beside", teacher="tiny", **OFF)
    assert all(torch.equal(value, beside[key]) for key, value in plain.items())
    taught = trained(tmp_path / "taught", teacher="tiny")
    assert any(not torch.equal(value, taught[key]) for key, value in plain.items())


@pytest.mark.parametrize("student", ["fused", "mean", "unet", "vnet"])
def test_any_of_four_students_ships(student):
    method = build(student=student).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        a, b, fused = method.trio.branches(image)
        expected = {"fused": fused, "mean": (a + b) / 2, "unet": a, "vnet": b}[student]
        assert torch.equal(method.student(image), expected)
        seen = method.watched(image, None)
        assert set(seen) == {"fused", "mean", "unet", "vnet", "sam", "student"} - {student}
        assert torch.equal(seen["student"], method.student(image))


@pytest.mark.parametrize(
    "settings",
    [
        {"teacher": "none"},
        {"aggregation": "mean"},
        {"mix_cells": 0},
        {"kd": "hard"},
        {"kd": "none"},
        {"agreement": "cps"},
        *({"prompts": prompts} for prompts in ("none", "mask", "tokens")),
        {"window": "whole"},
        {"optimizer": "sgd", "learning_rate": 0.01},
        {"gate": False, "mix_labels": "sam", "mix_tracks": True, "mix_where": "lowest", "aggregation": "replaces"},
        {"apart": False},
        {"as_released": True},
    ],
)
def test_every_field_does_something(settings):
    """The default's loss and gradient differ from the ablation's; both are finite."""
    losses = []
    for chosen in ({}, settings):
        method = build(**chosen)
        for parameter in method.parameters():  # what starts at zero must not hide a path
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        seed_everything(1)
        output = method.step(batch(), 0.6)
        output.loss.backward()
        optimizers = method.stages()[0].optimizers
        kinds = tuple(type(one).__name__ for one in optimizers)
        losses.append((float(output.loss.detach()), frozenset(output.terms), kinds))
        assert np.isfinite(losses[-1][0])
    if settings != {"window": "whole"}:  # tiny sees the whole grid anyway
        assert losses[0] != losses[1]


@pytest.mark.parametrize("apart", [True, False])
def test_others_do_not_normalise_labelled_images(apart):
    """Labelled images' logits, and what batch norms remember, are those without others in the batch."""
    seen = []
    for others in (0, 3):
        method = build(teacher="none", apart=apart)
        made = batch(2, 3)
        order = torch.tensor([2, 0, 3, 1, 4]) if others else torch.arange(2)
        seed_everything(1)
        z_f = method.branches(made._replace(image=made.image[order], labelled=made.labelled[order]))[2]
        seen.append((z_f[made.labelled[order]], method.trio.unet.encoder[0][1].running_mean.clone()))
    assert all(torch.allclose(a, b, atol=1e-6) == apart for a, b in zip(*seen, strict=True))


class Watch(TorchDispatchMode):
    """Collects operations whose result the host has to wait for; on a GPU each would stop the queue."""

    def __init__(self):
        super().__init__()
        self.waited = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.waited.append("".join(traceback.format_stack(limit=6)))
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device():
    method = build(as_released=False)
    made = batch()._replace(supervised=(True, True, False, False, False))  # as batches of a data set know it
    with Watch() as watch:
        output = method.step(made, 0.6)
        assert "mix_pseudo" in output.terms
        output.loss.backward()
        method.stages()[0].after_update(0.6)
    assert watch.waited == []
    with Watch() as watch:
        float(output.loss)
    assert len(watch.waited) == 1


# --- UGDA ---------------------------------------------------------------------------------------------------------


def test_the_most_uncertain_cells_are_chosen_by_hand():
    z = torch.full((1, 2, 8, 8), 0.0)
    z[:, 1] = 9.0  # sure everywhere
    z[0, 1, 0:2, 0:2] = 0.0  # but here
    z[0, 1, 6:8, 4:6] = 1.0  # and here, a little less
    cells = uncertain_cells(z, 2)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[0:2, 0:2] = expected[6:8, 4:6] = True
    assert torch.equal(cells[0], expected)
    assert not (uncertain_cells(z, 14, lowest=True)[0] & expected).any()


@pytest.mark.parametrize("size", [(30, 45), (17, 64)])
def test_cells_of_any_size_cover_their_share(size):
    cells = uncertain_cells(torch.randn(3, 3, *size), 5)
    assert cells.shape == (3, *size)
    share = cells.float().mean((1, 2))
    assert ((share > 0.2) & (share < 0.45)).all()  # 5 of 16, up to uneven cells


def test_partners_cycle_where_the_halves_differ():
    labelled = torch.tensor([True, False, True, True, False])
    assert partners(labelled).tolist() == [1, 0, 4, 1, 2]


def test_mixing_moves_pixels_and_labels_together():
    method = build(mix_confidence=0.8)
    made = batch(2, 1)
    source = torch.randn(3, 2, 32, 32) * 3
    z_f = torch.randn(3, 2, 32, 32)
    mixed = method.mixed(made, z_f, source)
    cells, partner = uncertain_cells(z_f, 5), [2, 2, 0]
    confidence, guess = source.softmax(1).max(1)
    label = torch.stack([made.mask[0], made.mask[1], guess[2]])
    sure = torch.stack([torch.ones(32, 32), torch.ones(32, 32), (confidence[2] >= 0.8).float()])
    for i, p in enumerate(partner):
        for y, x in ((3, 3), (15, 20), (31, 0), (9, 30)):
            j = p if cells[i, y, x] else i
            assert torch.equal(mixed.image[i, :, y, x], made.image[j, :, y, x])
            assert mixed.label[i, y, x] == label[j, y, x]
            assert mixed.weight[i, y, x] == sure[j, y, x]


def test_mixed_pixels_of_a_class_that_only_one_of_the_two_annotates_do_not_count():
    """As with two data sets: labelled rows know classes 0 and 1, the others 0 and 2."""
    method = build(3, teacher="none")
    made = batch(2, 2, classes=3)
    classes = torch.tensor([[True, True, False]] * 2 + [[True, False, True]] * 2)
    made = made._replace(mask=made.mask.clamp(max=1), classes=classes)
    mixed = method.mixed(made, torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32))
    assert set(mixed.label.unique().tolist()) == {0, 1, 2}
    assert mixed.classes.tolist() == [[True, False, False]] * 4
    assert torch.equal(mixed.weight, (mixed.label == 0).float())
    terms = method.step(made, 0.6).terms
    assert all(terms[name] < 10 for name in ("mix_sup", "mix_fusion", "mix_pseudo"))


def test_mixed_images_leave_the_statistics_alone():
    for tracks in (False, True):
        method = build(mix_tracks=tracks, mix_from=0.0)
        norm = next(m for m in method.trio.modules() if isinstance(m, torch.nn.BatchNorm2d))
        method.step(batch(), 0.6)
        assert norm.num_batches_tracked == (2 if tracks else 1)


def test_ugda_waits_for_the_validation_dice():
    nothing_validated = Task(2, (32, 32), ("",), 6, 4, validated=False)
    never = KnowSAM(KnowSAMConfig(teacher="none", mix_from_dice=0.5), nothing_validated)
    assert "mix_sup" in never.step(batch(), 0.6).terms
    method = build(mix_from_dice=0.5)
    assert "mix_sup" not in method.step(batch(), 0.6).terms  # no validation has said anything yet
    stage = method.stages()[0]
    for dice, mixes in ((0.3, False), (0.55, True), (0.4, True)):
        stage.after_validation(dice)
        assert ("mix_sup" in method.step(batch(), 0.6).terms) == mixes
    waited = build(mix_from_dice=0.5)
    waited.after_validation(0.3)
    said = waited.remarks([{"iteration": 9, "terms": {"unet": 1.0}}], batch()).sentences
    assert any("never mixed" in one and "the best was 0.300" in one for one in said)
    log = [{"iteration": i, "terms": {"mix_sup": 1.0} if i > 4 else {}} for i in range(1, 9)]
    assert method.remarks(log, batch()).sentences == ("UGDA mixed from update 5 of 8 on.",)


@pytest.mark.parametrize("student", ["fused", "mean", "unet", "vnet"])
def test_the_norms_of_all_students_are_measured(student):
    method = build(teacher="none", student=student)
    (stage,) = method.stages()

    def norms(network):
        return {id(m) for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert set.union(*map(norms, method.choices.values())) == norms(stage.measured)
    assert stage.scored is method.choices[student]


def test_gates_hear_of_all_batches_of_an_update():
    standing, made = Standing(1), batch(2, 0)
    right = torch.nn.functional.one_hot(made.mask, 2).permute(0, 3, 1, 2) * 9.0
    for _ in range(2):
        standing.observe(made, right)
        standing.observe(made, -right)
        standing.update()
        assert standing.running[0] == pytest.approx((1 + float(pooled_dice(-right, made))) / 2)


def test_untracked_statistics_normalise_by_the_batch():
    norm = torch.nn.BatchNorm2d(2)
    image = torch.randn(4, 2, 5, 5) * 3 + 1
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    with untracked_statistics(norm):
        seen = norm(image)
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    assert torch.equal(seen, norm(image))


def test_pseudo_labels_come_from_the_better_one():
    method = build()
    z_f, z_s = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    method.sam.standing.running.copy_(torch.tensor([0.9, 0.5]))
    assert torch.equal(method.pseudo(z_f, z_s), z_s)
    method.sam.standing.running.copy_(torch.tensor([0.4, 0.5]))
    assert torch.equal(method.pseudo(z_f, z_s), z_f)
    assert torch.equal(build(mix_labels="sam").pseudo(z_f, z_s), z_s)
    assert torch.equal(build(teacher="none").pseudo(z_f, None), z_f)


# --- SAM and its gate -----------------------------------------------------------------------------------------------


def test_a_wrong_sam_does_not_teach_on_labelled_pixels():
    method = build()
    made = batch(1, 1)
    z_s = torch.zeros(2, 2, 32, 32)
    z_s[:, 1] = 5.0  # foreground everywhere
    z = torch.randn(2, 2, 32, 32, requires_grad=True)
    method.sam.kd(z, z_s, made).backward()
    wrong = made.mask[0] == 0
    assert z.grad[0][:, wrong].abs().max() == 0
    assert z.grad[0][:, ~wrong].abs().min() > 0
    assert z.grad[1].abs().min() > 0  # unlabelled: nobody knows


def test_the_gate_shuts_when_sam_falls_behind_and_opens_again():
    sam = build().sam
    made = batch(2, 2)
    right = torch.nn.functional.one_hot(made.mask, 2).movedim(-1, 1) * 10.0
    for good, bad in ((right, -right), (-right, right)):
        for _ in range(200):
            sam.standing.observe(made, good, bad)
            sam.standing.update()
        assert bool(sam.ahead()) == (good is right)
        assert float(sam.weight(0.5)) == (1.0 if good is right else 0.0)
    assert sam.standing.running[1] > 0.8
    state = sam.standing.running.clone()
    sam.standing.observe(batch(0, 4), right, right)  # no labels: nothing is learnt about either
    sam.standing.update()
    torch.testing.assert_close(sam.standing.running, state)


@pytest.mark.parametrize(
    ("dice", "taught"), [((0.5, 0.2), {"vnet"}), ((0.2, 0.5), {"unet"}), ((0.5, 0.49), {"unet", "vnet"})]
)
def test_a_subnet_does_not_learn_from_one_that_knows_less(dice, taught):
    for gate in (True, False):
        method = build(teacher="none", gate=gate)
        method.standing.running.copy_(torch.tensor(dice))
        terms = method.step(batch(), 0.6).terms
        for term in ("consistency", "mix_consistency"):
            assert reached(method, terms[term]) == (taught if gate else {"unet", "vnet"})


def test_a_loaded_sam_stays_byte_equal_and_only_its_adapters_train(tmp_path):
    path = saved(tmp_path / "sam.pth", mini_sam())
    method = build(teacher=path, size=(128, 128))
    frozen = {k: p.detach().clone() for k, p in method.sam.named_parameters() if getattr(p, "frozen", False)}
    moving = {k: p.detach().clone() for k, p in method.sam.named_parameters() if not getattr(p, "frozen", False)}
    stage = method.stages()[0]
    output = method.step(batch(2, 1, size=(128, 128)), 0.6)
    output.loss.backward()
    for optimizer in stage.optimizers:
        optimizer.step()
    now = dict(method.sam.named_parameters())
    assert frozen
    assert all(torch.equal(value, now[key]) for key, value in frozen.items())
    assert any(not torch.equal(value, now[key]) for key, value in moving.items())
    held = {id(p) for optimizer in stage.optimizers for p in optimizer.state}
    assert not held & {id(now[key]) for key in frozen}


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), (128, 128)), ((128, 200), (128, 208)), ((96, 257), (128, 272))]
)
def test_sam_sees_a_size_that_it_can_take(size, expected):
    assert sam_size(size) == expected
    sam = SamDistillation(Skd("tiny"), Task(3, size, ("",), 1, 1))
    with torch.no_grad():
        assert sam(torch.rand(1, 3, *size), torch.zeros(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(32, 32), (128, 144)])
def test_a_step_in_bf16(size):
    """As Fabric runs it: the image arrives in bf16."""
    method = build(size=size)
    made = batch(2, 1, size=size)
    made = made._replace(image=made.image.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method.step(made, 0.6)
    output.loss.backward()
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mix_cells": 17}, "--knowsam.mix_cells 17: the grid has 16 cells"),
        ({"mix_cells": -1}, "--knowsam.mix_cells -1: the grid has 16 cells"),
        ({"as_released": True, "kd": "hard"}, "--knowsam.kd hard: --knowsam.as_released true"),
        ({"as_released": True, "gate": False, "agreement": "cps"}, "--knowsam.agreement cps: --knowsam.as_released"),
        ({"as_released": True}, "--knowsam.gate true: --knowsam.as_released true"),
    ],
)
def test_settings_that_would_crash_or_do_nothing_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        KnowSAM.require(KnowSAMConfig(teacher="none", **settings))


@pytest.mark.parametrize(
    "settings",
    [{"mix_cells": 0}, {"mix_cells": 16}, {"as_released": True, "gate": False, "kd": "none", "agreement": "none"}],
)
def test_settings_at_the_edge_are_taken(settings):
    config = KnowSAMConfig(teacher="none", **settings)
    assert KnowSAM.require(config) == config
    assert torch.isfinite(build(**vars(config)).step(batch(), 0.6).loss)


# --- released vs paper ----------------------------------------------------------------------------------------------


def test_as_released_the_vnet_learns_nothing_from_the_unet():
    method = build(as_released=True, aggregation="replaces", gate=False, apart=False)
    terms = method.step(batch(), 0.6).terms
    assert reached(method, terms["consistency"]) == {"unet"}


def test_as_released_the_certain_cells_are_overwritten():
    z_f = torch.randn(3, 2, 32, 32)
    made, source = batch(2, 1), torch.randn(3, 2, 32, 32)
    released = build(as_released=True).mixed(made, z_f, source)
    cells = uncertain_cells(z_f, 5, lowest=True)
    assert torch.equal(
        released.image[0] != made.image[0], cells[0].expand(3, -1, -1) & (made.image[2] != made.image[0])
    )


def test_as_released_the_fusion_replaces_and_sam_starts_with_random_adapters():
    method = build(as_released=True, aggregation="replaces")
    assert isinstance(method.trio.aggregation, HybridAggregation)
    made, z = batch(1, 0), torch.zeros(1, 2, 32, 32)
    adapters = [p for k, p in method.sam.named_parameters() if ".after." in k or ".beside." in k]
    assert all(p.any() for p in adapters if p.ndim > 1)
    default = build()
    assert not all(p.any() for k, p in default.sam.named_parameters() if ".up.weight" in k)
    assert torch.isfinite(method.sam(made.image, z)).all()


def test_as_released_a_hole_erases_the_label():
    made = batch(4, 0)._replace(mask=torch.ones(4, 32, 32, dtype=torch.long))
    torch.manual_seed(0)
    erased = build(as_released=True).stages()[0].augment(made)
    torch.manual_seed(0)
    kept = build().stages()[0].augment(made)
    black = (erased.image == 0).all(1)
    assert torch.equal(erased.image, kept.image)
    assert (erased.mask[black] == 0).all()
    assert (kept.mask[black] == 1).any()


def test_the_loss_is_the_sum_that_the_paper_writes():
    method = build(gate=False)
    output = method.step(batch(), 0.9)
    t = output.terms
    expected = (t["unet"] + t["vnet"]) / 2 + t["fusion"] + t["sam"] + t["kd"] + 0.9 * t["entropy"] + t["consistency"]
    expected = (
        expected + t["mix_sup"] + t["mix_fusion"] + 0.9 * t["mix_entropy"] + t["mix_consistency"] + t["mix_pseudo"]
    )
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


# --- the report's words ---------------------------------------------------------------------------------------------


def logged(sam, student, weights=()):
    """A log of one validation per pair, after updates with the given weights of the distillation."""
    updates = [{"iteration": i, "terms": {"mu": mu}} for i, mu in enumerate(weights)]
    seen = [{"watched": {"sam": a}, "validation": {"dice": b}} for a, b in zip(sam, student, strict=True)]
    return [*updates, *seen]


def test_the_report_says_whether_sam_had_anything_to_teach():
    method = build()
    method.sam.standing.running.copy_(torch.tensor([0.6, 0.5]))
    made = method.remarks(logged((0.3, 0.7), (0.4, 0.6), (0.0, 0.0, 0.5, 1.0)), batch())
    said = " ".join(made.sentences)
    assert "SAM began without weights" in said
    assert (
        "ahead of the student at 1 of 2 validations; at the last one its Dice was 0.700 and the student's 0.600" in said
    )
    assert "nothing to teach" not in said
    assert "The gate was open where the weights were best" in said
    assert "on labelled training images SAM's running Dice was 0.600, the student's 0.500" in said
    assert "It taught in 50% of the updates" in said
    method.sam.standing.running.copy_(torch.tensor([0.3, 0.5]))
    shut = " ".join(method.remarks(logged((0.3,), (0.4,), (0.0,)), batch()).sentences)
    assert "nothing to teach" in shut
    assert "The gate was shut where the weights were best" in shut
    assert "It taught in 0% of the updates" in shut


def test_a_run_without_sam_says_nothing_about_it():
    method = build(teacher="none")
    made = method.remarks(logged((0.3,), (0.4,)), batch())
    assert made.sentences == ()
    assert len(made.pictures) == len(batch().image)
    assert all(picture.shape == (32, 32, 3) for _, picture in made.pictures)
    assert build(teacher="none", mix_cells=0).remarks([], batch()).pictures == ()


@pytest.mark.parametrize(
    ("settings", "lowest"), [({}, False), ({"mix_where": "lowest"}, True), ({"as_released": True}, True)]
)
def test_the_report_draws_the_cells_that_are_overwritten(settings, lowest):
    method, made = build(teacher="none", **settings).eval(), batch()
    with torch.no_grad():
        cells = uncertain_cells(method.trio(made.image), 5, lowest=lowest)
    for (_, picture), image, chosen in zip(method.remarks([], made).pictures, made.image, cells, strict=True):
        assert np.array_equal(picture, drawn(image, chosen))
