"""ESP-MedSAM's student: modalities do not touch each other, whatever they share."""

import pytest
import torch
import torch.nn.functional as F

from segdistill.models.modality_change import add_modality, bind_modality, new_parameters
from segdistill.models.modality_classifier import FeatureMemory, ModalityClassifier
from segdistill.models.modality_heads import NEVER
from segdistill.models.students import build_student, student_spec
from segdistill.types import UserError

CLASSES = [[1], [2, 1], [3]]


def loud(*, controllers=True, **arguments):
    """Three modalities of one or two of four classes, every parameter of theirs far from 0."""
    torch.manual_seed(0)
    defaults = {"classes": 4, "modalities": ["a", "b", "c"], "modality_classes": CLASSES}
    student = build_student("esp_medsam", **defaults | arguments, controllers=controllers)
    for name, parameter in student.named_parameters():
        if name.startswith(("controllers.", "classifier.", "skips.")):
            torch.nn.init.normal_(parameter, std=0.2)
    return student.eval()


@pytest.fixture(scope="module")
def student():
    return loud()


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.rand(4, 3, 64, 96)


MODALITY = torch.tensor([1, 0, 2, 1])
VARIANTS = {
    "default": {},
    "joint": {"joint_channels": [4, 0, 2]},
    "joint, more queries than released": {"joint_channels": [8, 0, 2]},
    "skips": {"skips": True},
    "separate": {"separate_heads": True, "skips": True},
    "soft": {"patch_prompt": "soft"},
    "plain": {"controllers": False},
}


def test_an_absent_modality_has_no_gradient(image):
    """Not even one of zero, by which Adam's momentum would go on moving it."""
    student = loud()
    student.run(image, torch.tensor([1, 0, 1, 1])).logits.sum().backward()
    banks = {
        m: dict(student.controllers[m].named_parameters()) | dict(student.readouts[m].named_parameters())
        for m in range(3)
    }
    assert all(p.grad is None for p in banks[2].values())
    assert all(p.grad is not None for m in (0, 1) for p in banks[m].values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mixed_batch_is_its_rows(image, variant):
    student = loud(**VARIANTS[variant])
    with torch.no_grad():
        mixed = student.run(image, MODALITY)
        for i, m in enumerate(MODALITY):
            alone = student.run(image[[i]], m[None])
            for whole, part in zip(mixed, alone, strict=True):
                torch.testing.assert_close(whole[[i]], part, rtol=1e-3, atol=1e-3)
            assert (student(image[[i]], (m[None] + 1) % 3)[:, 1:] - alone.logits[:, 1:]).abs().max() > 0.01


def test_skips_begin_as_if_there_were_none_and_add_what_the_trunk_saw(image):
    plain, student = (
        loud(),
        build_student("esp_medsam", classes=4, modalities=list("abc"), modality_classes=CLASSES, skips=True),
    )
    student.eval().load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(student(image, MODALITY), plain(image, MODALITY))
    student(image, MODALITY)[:, 1].sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.skips.parameters())
    seen = []
    student.heads[0].upscaling.register_forward_hook(lambda module, given, out: seen.append((*given, out)))
    with torch.no_grad():
        for parameter in student.skips.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        student(image, MODALITY)
        quarter, eighth = student.trunk.early(student._normalise(image))
        (x, _, out), skips, up = seen[0], student.skips, student.heads[0].upscaling
        repeated = [skips.quarter(quarter).repeat_interleave(2, 0), skips.eighth(eighth).repeat_interleave(2, 0)]
        y = F.conv_transpose2d(x, up[0].weight, up[0].bias, stride=2) + repeated[1]
        y = F.conv_transpose2d(F.gelu(up[1](y)), up[3].weight, up[3].bias, stride=2) + repeated[0]
    torch.testing.assert_close(F.gelu(y), out)


def test_a_modality_has_its_own_classes(student, image):
    with torch.no_grad():
        logits = student(image, MODALITY)
        low = torch.full_like(logits[0, 0], -1e4)
    assert logits.shape == (4, 4, 64, 96)
    assert not logits[:, 0].any()
    for row, m in zip(logits, MODALITY.tolist(), strict=True):
        for k in (1, 2, 3):
            assert (k in CLASSES[m]) != torch.allclose(row[k], low)
    prob = logits.softmax(1)
    torch.testing.assert_close(prob[1, 1], logits[1, 1].sigmoid())
    assert not prob[1, 2:].any()


def test_two_classes_of_a_modality_have_prompts_and_queries_of_their_own(student, image):
    x, b = image[:1], torch.tensor([1])
    head = student.heads[0]
    own = [
        [head.prompt.patch[1], head.prompt.prompt[1]],
        [head.prompt.patch[0], head.prompt.prompt[0]],
    ]
    for modules, kept in zip(own, (1, 2), strict=True):
        student.zero_grad()
        student.run(x, b).logits[:, kept].sum().backward()
        other = [p.grad for p in modules[1].parameters()]
        assert not any(g is not None and g.any() for g in other)
        assert student.readouts[1].query.grad[CLASSES[1].index(kept)].any()
        assert not student.readouts[1].query.grad[1 - CLASSES[1].index(kept)].any()


@pytest.mark.parametrize("mixed", [False, True])
def test_what_a_modality_does_is_bit_equal_whatever_another_is(image, mixed):
    results = []
    for noise in (0.0, 1.0):
        student = loud()
        with torch.no_grad():
            for parameter in student.own_parameters(1):
                parameter += noise
        rows = torch.tensor([0, 1, 2, 0]) if mixed else torch.tensor([0, 2, 2, 0])
        out = student.run(image, rows)
        a = rows != 1
        (out.logits[a].clamp(min=-100).square().mean() + out.patch[a].square().mean()).backward()
        gradients = [p.grad for m in (0, 2) for p in student.own_parameters(m)]
        results.append([out.logits[a], out.patch[a], out.embedding[a], out.route[:, [0, 2]], *gradients])
        assert not any(p.grad is not None and p.grad.any() for p in student.own_parameters(1))
    assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_joint_queries_do_touch_each_other(image):
    student = loud(joint_channels=[4, 0, 2])
    before = student(image, MODALITY).detach()
    with torch.no_grad():
        student.heads[0].joint.query[:, 5] += 1  # a channel that nothing reads
    assert (student(image, MODALITY) - before).abs().max() > 1e-3


def test_without_a_modality_the_classifier_decides_in_the_same_pass(student, image, monkeypatch):
    calls = []
    early = student.trunk.early
    monkeypatch.setattr(student.trunk, "early", lambda x: calls.append(1) or early(x))
    with torch.no_grad():
        out = student.run(image)
        assert len(calls) == 1
        found = student.route(image)
        torch.testing.assert_close(out.route.softmax(1), found)
        assert torch.equal(out.logits, student(image, found.argmax(1)))
        assert torch.equal(out.route, student.run(image, MODALITY).route)


def test_the_classifier_trains_itself_alone(image):
    student = loud()
    torch.nn.functional.cross_entropy(student.run(image).route, MODALITY).backward()
    assert {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None} == {"classifier"}


def test_an_untrained_classifier_says_that_it_does_not_know(image):
    student = build_student("esp_medsam", classes=2, modalities=["a", "b", "c"]).eval()
    torch.testing.assert_close(student.route(image), torch.full((4, 3), 1 / 3))
    assert torch.equal(build_student("esp_medsam", classes=2).eval().route(image), torch.ones(4, 1))


def test_masks_do_not_train_the_patches(student, image):
    student.zero_grad()
    student.run(image, MODALITY).logits.clamp(min=-100).sum().backward()
    assert all(p.grad is None for p in student.heads[0].prompt.patch.parameters())
    assert student.heads[0].prompt.prompt[0][0].weight.grad.any()


def test_patch_prompts_differ_by_their_kind(image):
    students = {kind: loud(patch_prompt=kind) for kind in ("hard", "soft", "none")}
    with torch.no_grad():
        out = {kind: s(image, MODALITY) for kind, s in students.items()}
        prompt = students["hard"].heads[0].prompt
        logits = torch.tensor([[[[-1.0, 1], [2, -3]]] * 3]).squeeze(2).reshape(1, 3, 2, 2)
        dense = prompt(logits, torch.tensor([[2]]))
    assert all((out[a] - out[b]).abs().max() > 1e-3 for a, b in (("hard", "soft"), ("soft", "none"), ("none", "hard")))
    assert dense.shape == (1, 1, 256, 4, 4)
    assert torch.equal(dense[..., :2, :2], dense[..., 2:, 2:])  # both below one half
    assert torch.equal(dense[..., :2, 2:], dense[..., 2:, :2])
    assert not torch.equal(dense[..., 0, 0], dense[..., 0, 2])


@pytest.mark.parametrize("separate_heads", [False, True])
def test_what_an_exported_graph_computes(image, monkeypatch, separate_heads):
    student = loud(separate_heads=separate_heads, skips=True)
    with torch.no_grad():
        expected = student(image[:1], torch.tensor([1]))
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
        torch.testing.assert_close(student(image[:1], torch.tensor([1])), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", [*VARIANTS])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_bound_student_is_one_modality(image, variant, name):
    student = loud(**VARIANTS[variant])
    bound = bind_modality(student, name)
    assert bound.modalities == (name,)
    assert not bound.training
    assert sum(p.numel() for p in bound.parameters()) < sum(p.numel() for p in student.parameters())
    m = torch.full((4,), student.modalities.index(name))
    with torch.no_grad():
        assert torch.equal(bound(image), student(image, m))
        assert torch.equal(bound(image, m), student(image, m))
    assert student_spec(bound).arguments["modalities"] == [name]


@pytest.mark.parametrize("variant", ["default", "skips", "separate", "plain"])
def test_a_modality_is_added_and_no_output_changes(image, variant):
    student = loud(**VARIANTS[variant])
    extended = add_modality(student, "d", [3, 1, 2])
    assert extended.modalities == ("a", "b", "c", "d")
    with torch.no_grad():
        old, new = student.run(image, MODALITY), extended.run(image, MODALITY)
        assert all(torch.equal(x, y) for x, y in zip([*old[:3], old.features], [*new[:3], new.features], strict=True))
        assert torch.equal(old.route, new.route[:, :3])
        assert torch.equal(student(image), extended(image))
    grown = {name for name, _ in extended.named_parameters()} - {name for name, _ in student.named_parameters()}
    own = {id(p) for p in extended.own_parameters(3)}
    assert grown == {name for name, p in extended.named_parameters() if id(p) in own}
    extended(image, torch.tensor([3, 3, 0, 3]))[:, 1:].clamp(min=-100).sum().backward()
    assert extended.readouts[3].query.grad.abs().sum(1).min() > 0
    with torch.no_grad():  # training what is new leaves the others alone
        for parameter in extended.own_parameters(3):
            parameter += 1
        extended.classifier.scores[3].bias.fill_(-1e3)
        assert torch.equal(student(image), extended(image))


def test_a_modality_is_added_to_a_student_of_one(image):
    student = build_student("esp_medsam", classes=2, modalities=["a"]).eval()
    extended = add_modality(student, "b", [1])
    zero = torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(student(image), extended(image, zero))
        assert (extended.route(image)[:, 0] > 0.99).all()


@pytest.mark.parametrize("variant", ["default", "separate"])
def test_a_modality_may_bring_classes_of_its_own(image, variant):
    student = loud(**VARIANTS[variant])
    extended = add_modality(student, "d", [2, 5], 6)
    new = new_parameters(extended, 4)
    with torch.no_grad():
        for parameter in new:
            parameter += 0.02 * torch.randn_like(parameter)
        old, now = student.run(image, MODALITY), extended.run(image, MODALITY)
        assert torch.equal(old.logits, now.logits[:, :4])
        assert torch.equal(old.patch, now.patch[:, :3])
        p = now.logits.softmax(1)
        assert torch.equal(old.logits.softmax(1), p[:, :4])  # no probability is lost to the new classes
        assert not p[:, 4:].any()
        fresh = extended(image, torch.full((4,), 3))
        assert (fresh[:, [0, 2, 5]] > NEVER / 2).all()
        assert (fresh[:, [1, 3, 4]] < NEVER / 2).all()
    held = {id(parameter) for parameter in new}
    assert len(held) == len(new)
    count = {k: v.shape for k, v in student.named_parameters()}
    grown = {k for k, v in extended.named_parameters() if k not in count}
    changed = {k for k, v in extended.named_parameters() if id(v) in held}
    assert changed <= grown
    assert all(k.startswith("heads.") for k in grown - changed)  # other heads' prompts of the new classes: never used
    assert variant == "separate" or grown == changed


def test_what_is_remembered_of_each_modality():
    memory = FeatureMemory(2)
    rows = torch.arange(70.0)[:, None].expand(-1, 384)
    memory.remember(rows[:3], torch.tensor([0, 1, 0]))
    assert memory.recalled(0)[:, 0].tolist() == [0, 2]
    assert memory.recalled(1)[:, 7].tolist() == [1]
    memory.remember(rows, torch.zeros(70, dtype=torch.long))
    assert memory.recalled(0)[:, 0].tolist() == list(range(6, 70))
    assert memory.seen.tolist() == [72, 1]


def test_a_classifier_learns_from_every_modality_alike():
    """One image remembered of the first, 70 seen of the second, none of the third: as the mean of two means."""
    torch.manual_seed(0)
    memory, classifier = FeatureMemory(3), ModalityClassifier(3)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter)
    assert memory.cross_entropy(classifier, 3) == 0
    one, many = torch.randn(1, 384), torch.randn(70, 384)
    memory.remember(one, torch.tensor([0]))
    memory.remember(many, torch.ones(70, dtype=torch.long))
    means = [F.cross_entropy(classifier(one), torch.tensor([0]))]
    means.append(F.cross_entropy(classifier(many[-64:]), torch.ones(64, dtype=torch.long)))
    torch.testing.assert_close(memory.cross_entropy(classifier, 3), (means[0] + means[1]) / 2)
    torch.testing.assert_close(memory.cross_entropy(classifier, 1), means[0])


def test_parameters_per_modality():
    """methods.md: 12.5 M with one controller; with six 28.2 M as released, and .7 M more for an MLP each."""
    count = {
        n: sum(p.numel() for p in build_student("esp_medsam", classes=2, modalities=list("abcdef"[:n])).parameters())
        for n in (1, 6)
    }
    assert count == {1: 12_462_047, 6: 28_894_967}


def test_a_card_can_hold_the_arguments(student):
    import json

    spec = student_spec(student)
    again = build_student(spec.name, **json.loads(json.dumps(spec.arguments)))
    assert again.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"classes": 2, "modalities": ["a", "a"]}, "name each once"),
        ({"classes": 2, "modalities": ["a", "b"], "modality_classes": [[1]]}, "for 2 modalities"),
        ({"classes": 2, "modalities": ["a"], "modality_classes": [[2]]}, "1 to 1"),
        ({"classes": 2, "modalities": ["a"], "modality_classes": [[]]}, "at least one"),
    ],
)
def test_what_cannot_be_built_is_one_line(arguments, match):
    with pytest.raises(UserError, match=match):
        build_student("esp_medsam", **arguments)


def test_what_cannot_be_changed_is_one_line(student):
    with pytest.raises(UserError, match="no modality 'x'; give one of a, b, c"):
        bind_modality(student, "x")
    with pytest.raises(UserError, match="name each once"):
        add_modality(student, "a", [1])
    with pytest.raises(UserError, match="joint queries"):
        add_modality(loud(joint_channels=[0, 1, 2]), "d", [1])
