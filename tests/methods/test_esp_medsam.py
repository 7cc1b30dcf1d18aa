"""ESP-MedSAM: who trains in which stage, where the stages meet, what each ablation leaves out."""

import numpy as np
import pytest
import torch
from sam_files import mini_sam, saved
from toy import run_toy, toy_data

from segdistill.engine.plan import set_trainable
from segdistill.engine.randomness import seed_everything
from segdistill.engine.trainer import Trainer
from segdistill.methods.esp_medsam import ESPMedSAM, ESPMedSAMConfig, drawn
from segdistill.models.students import build_student
from segdistill.types import Batch, Store, Task, UserError

SIZE = 32
STAGES = ["medical", "common", "domain", "head"]


def build(size=(SIZE, SIZE), classes=2, modalities=("skin", "lung"), modality_classes=(), **settings):
    seed_everything(0)
    config = ESPMedSAMConfig(**{"sam": "tiny"} | settings)
    return ESPMedSAM(config, Task(classes, size, modalities, 6, 4, modality_classes))


def batch(labelled=2, others=2, classes=2, size=(SIZE, SIZE)):
    torch.manual_seed(0)
    rows = labelled + others
    image = torch.rand(rows, 3, *size)
    mask = (classes * image.mean(1)).long().clamp(max=classes - 1)
    known, every = torch.arange(rows) < labelled, torch.ones(rows, classes, dtype=torch.bool)
    return Batch(image, None, mask, known, every, torch.arange(rows) % 2, torch.arange(rows))


@pytest.fixture(scope="module")
def sam_file(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("sam") / "sam.pth", mini_sam())


def stage_of(method, name):
    stage = next(s for s in method.stages() if s.name == name)
    stage.prepare()
    set_trainable(method, stage.optimizers)
    return stage


def part(key):
    return ".".join(key.split(".")[:2])


OWN = {
    "medical": {"teacher.controllers", "teacher.decoder"},
    "common": {"student.trunk"},
    "domain": {"student.controllers"},
    "head": {"student.heads", "student.skips", "student.readouts", "student.classifier", "student.memory"},
}


def test_each_stage_trains_its_parts_and_leaves_the_bytes_of_all_others(sam_file):
    method = build(sam=sam_file)
    assert [s.name for s in method.stages()] == STAGES
    for name in STAGES:
        stage = stage_of(method, name)
        before = {k: v.clone() for k, v in method.state_dict().items()}  # norm statistics too
        stage.step(batch(), 0.5).loss.backward()
        for optimizer in stage.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        moved = {part(k) for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == OWN[name]


def test_a_sam_without_weights_trains_whole_and_a_student_may():
    method = build()
    assert {id(p) for p in method.teacher.parameters()} == held(stage_of(method, "medical"))
    method = build(tuned="student", init="none", common=False)
    assert {id(p) for p in method.student.parameters()} == held(stage_of(method, "head"))


def held(stage):
    return {id(p) for optimizer in stage.optimizers for group in optimizer.param_groups for p in group["params"]}


REACHED = {
    "medical": {
        "seg": {"teacher.controllers", "teacher.decoder"},
        "patch": {"teacher.controllers", "teacher.decoder"},
    },
    "common": {"common": {"student.trunk"}},
    "domain": {"domain": {"student.trunk", "student.controllers"}},
    "head": {
        "seg": {f"student.{part}" for part in ("trunk", "controllers", "heads", "skips", "readouts")},
        "patch": {"student.trunk", "student.controllers", "student.heads"},
        "route": {"student.classifier"},
    },
}


@pytest.mark.parametrize("name", STAGES)
def test_each_term_reaches_what_it_should_and_nothing_else(name, sam_file):
    """Even where everything but SAM's file might train."""
    method = build(sam=sam_file)
    stage = stage_of(method, name)
    for key, parameter in method.named_parameters():
        parameter.requires_grad_(not key.startswith("teacher.sam."))
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)  # what starts at zero must not hide a path
    named = {k: p for k, p in method.named_parameters() if p.requires_grad}
    for term, value in stage.step(batch(), 0.5).terms.items():
        grads = torch.autograd.grad(value, [*named.values()], retain_graph=True, allow_unused=True)
        reached = {part(k) for k, g in zip(named, grads, strict=True) if g is not None and g.any()}
        assert reached == REACHED[name][term]


def test_the_loss_is_the_sum_that_the_paper_writes():
    method = build(patch_weight=0.25)
    t = (out := stage_of(method, "medical").step(batch(), 0.5)).terms
    torch.testing.assert_close(out.loss, t["seg"] + 0.25 * t["patch"])
    t = (out := stage_of(method, "head").step(batch(), 0.5)).terms
    torch.testing.assert_close(out.loss, t["seg"] + 0.25 * t["patch"] + t["route"])


def test_the_controllers_start_where_the_trunk_ended(sam_file):
    method = build(sam=sam_file)
    stage_of(method, "domain")
    image, modality = batch().image, batch().modality
    with torch.no_grad():
        alone, controlled = method.student.encode(image, None), method.student.encode(image, modality)
    assert 0 < (alone - controlled).square().mean().sqrt() < 1e-4  # of embeddings with deviation 1


def test_a_mixed_batch_distils_as_its_rows_do(sam_file):
    method = build(sam=sam_file)
    stage, whole = stage_of(method, "domain"), batch()
    assert set(whole.modality.tolist()) == {0, 1}
    assert not method.student.trunk.training
    together = stage.step(whole, 0.5).loss
    each = [stage.step(Batch(*(None if x is None else x[i : i + 1] for x in whole)), 0.5).loss for i in range(4)]
    torch.testing.assert_close(together, torch.stack(each).mean(), rtol=1e-4, atol=1e-6)
    together.backward()
    assert all(bank[0].mlp.fc2.weight.grad.any() for bank in method.student.controllers)


def test_whom_the_controllers_copy(sam_file):
    """The medical teacher; SAM itself where there is none."""
    image, modality = batch().image, batch().modality
    for medical in (True, False):
        method = build(sam=sam_file, medical=medical)
        for parameter in method.teacher.controllers.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        stage = stage_of(method, "domain")
        with torch.no_grad():
            h = method.student.encode(image, modality)
            told, plain = (method.teacher.encode(image, m) for m in (modality, None))
            expected = (h - (told if medical else plain)).square().mean()
            torch.testing.assert_close(stage.step(batch(), 0.5).loss, expected)
            assert (told - plain).abs().max() > 0.01


@pytest.mark.parametrize("joint", [False, True])
def test_the_heads_start_as_the_teachers(joint):
    method = build(joint_queries=joint)
    with torch.no_grad():
        for parameter in method.teacher.decoder.parameters():
            parameter.add_(0.01)
    stage_of(method, "head")
    image, modality = batch().image, batch().modality
    with torch.no_grad():
        told = method.teacher.run(image, modality)
        student = method.student.segment(
            method.teacher.encode(image, modality), method.student.rows(modality), image.shape[2:]
        )
    for a, b in zip(told, student, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    apart = build(sam="tiny", medical=False, common=False, domain=False, tuned="student")
    assert apart.teacher is None  # S3 then starts at heads of its own


def test_labels_are_used_in_the_first_and_last_stage_only():
    method = build()
    plan = {s.name: s for s in method.stages()}
    assert [plan[n].batch for n in STAGES] == [(4, 0), (0, 4), (0, 4), (4, 0)]
    known, other = batch(2, 2), batch(2, 2)
    other.mask[:2] = 1 - other.mask[:2]
    noise = known._replace(mask=torch.where(known.labelled[:, None, None], known.mask, 1 - known.mask))
    blank = known._replace(image=torch.where(known.labelled[:, None, None, None], known.image, 0.5))
    for name in STAGES:
        stage = stage_of(method, name)
        method.eval()  # no batch statistics
        seen = [stage.step(b, 0.5).loss for b in (known, noise, other, blank)]
        assert torch.equal(seen[0], seen[1])
        assert (not torch.equal(seen[0], seen[2])) == (name in ("medical", "head"))
        if name in ("common", "domain"):
            assert not torch.equal(seen[0], seen[3])  # unlabelled images teach
        if name == "medical":
            torch.testing.assert_close(seen[0], seen[3])


def test_modalities_have_classes_of_their_own():
    method = build(classes=4, modality_classes=((1,), (2, 3)))
    assert method.student.counts == method.teacher.decoder.counts == [1, 2]
    made = batch(4, 0, classes=4)
    every = made.classes.clone()
    every[0::2, 2:], every[1::2, 1] = False, False
    mask = torch.where(every.gather(1, made.mask.flatten(1)).view_as(made.mask), made.mask, 0)
    made = made._replace(classes=every, mask=mask)
    for name in STAGES:
        stage = stage_of(method, name)
        stage.step(made, 0.5).loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    with torch.no_grad():
        for network in (method.student.eval(), method.teacher.eval()):
            p = network(made.image, made.modality).softmax(1)
            assert not p[0::2, 2:].any()
            assert not p[1::2, 1].any()


@pytest.mark.parametrize("size", [(40, 70), (64, 32)])
def test_both_encoders_share_a_grid(size):
    method = build(size=size)
    for name in STAGES:
        assert torch.isfinite(stage_of(method, name).step(batch(size=size), 0.5).loss)


@pytest.mark.parametrize("name", STAGES)
def test_a_step_in_bf16(name):
    """As Fabric runs it: the image arrives in bf16."""
    method = build()
    made = batch()._replace(image=batch().image.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = stage_of(method, name).step(made, 0.5)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def finding(method):
    """What a method computes, stage by stage."""
    found = []
    for stage in method.stages():
        stage.prepare()
        set_trainable(method, stage.optimizers)
        output = stage.step(batch(), 0.5)
        sizes = [sum(p.numel() for p in group["params"]) for o in stage.optimizers for group in o.param_groups]
        found.append((stage.name, float(output.loss.detach()), frozenset(output.terms), tuple(sizes)))
    return found


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"medical": False}, {"medical"}),
        ({"common": False, "tuned": "student"}, {"common"}),
        ({"domain": False}, {"domain"}),
        ({"controllers": False}, {"domain"}),
        ({"patch_prompt": "soft"}, set()),
        ({"patch_prompt": "none"}, set()),
        ({"joint_queries": True}, set()),
        ({"tuned": "student"}, set()),
    ],
    ids=str,
)
def test_every_ablation_changes_something(settings, left_out, sam_file):
    ablated, default = finding(build(sam=sam_file, **settings)), finding(build(sam=sam_file))
    assert {s[0] for s in default} - {s[0] for s in ablated} == left_out
    assert ablated != default
    if settings.get("patch_prompt") == "none":
        assert not any("patch" in terms for _, _, terms, _ in ablated)


def test_the_trunk_may_start_as_mobile_sams(tmp_path):
    torch.manual_seed(5)
    trunk = build_student("esp_medsam", classes=2).trunk.state_dict()
    torch.save({f"image_encoder.{k}": v for k, v in trunk.items()}, tmp_path / "mobile_sam.pt")
    method = build(init=str(tmp_path / "mobile_sam.pt"), common=False)
    assert [s.name for s in method.stages()] == ["medical", "domain", "head"]
    loaded = method.student.trunk.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in trunk.items() if not k.endswith("num_batches_tracked"))


def test_plans_that_teach_noise_are_refused_in_one_line():
    for settings, words in (
        ({"medical": False}, "teach nothing without S0"),
        ({"common": False}, "leaves the trunk random"),
    ):
        with pytest.raises(UserError, match=words) as error:
            build(**settings)
        assert "\n" not in str(error.value)


def test_the_rate_falls_as_released():
    """.98 after each of 200 epochs."""
    schedule = build().stages()[2].schedule
    for epoch in (0, 1, 50, 200):
        assert schedule(epoch / 200) == pytest.approx(0.98**epoch, rel=1e-2)


def test_the_classifier_has_a_rate_of_its_own():
    method = build()
    (optimizer,) = stage_of(method, "head").optimizers
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    routing = {id(p) for p in method.student.classifier.parameters()}
    assert {rates[i] for i in routing} == {5e-3}
    assert {rate for i, rate in rates.items() if i not in routing} == {5e-4}
    assert len(build(modalities=("",)).stages()[3].optimizers[0].param_groups) == 1  # nothing to tell apart


def stored(tmp_path, rows=range(4), size=(SIZE, SIZE), said=None, **settings):
    """A method whose teacher's embeddings are kept below tmp_path."""
    seed_everything(0)
    store = Store(tmp_path / "embeddings", tuple(rows), (said if said is not None else []).append)
    config = ESPMedSAMConfig(**{"sam": "tiny", "cached": True} | settings)
    return ESPMedSAM(config, Task(2, size, ("skin", "lung"), 6, 4, store=store))


@pytest.mark.parametrize("size", [(32, 32), (40, 70)])
def test_cached_embeddings_teach_as_computed_ones(tmp_path, sam_file, size):
    said = []
    method, plain = stored(tmp_path, size=size, said=said, sam=sam_file), build(size=size, sam=sam_file)
    calls = []
    for name in ("common", "domain"):
        cached = stage_of(method, name)
        encode = method.teacher.encode
        method.teacher.encode = lambda image, m, encode=encode: calls.append(len(image)) or encode(image, m)
        computed = stage_of(plain, name)
        for _ in range(2):
            losses = [stage.step(batch(size=size), 0.5).loss for stage in (cached, computed)]
            torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-5)
        method.teacher.encode = encode
        assert cached.augment(batch()).image.equal(batch().image)  # as it is, or the cache would be wrong
        assert [p.name for p in (tmp_path / "embeddings").iterdir()] == [name]
    assert calls == [4, 4]  # each image once per stage
    assert said[0].startswith("common: the teacher's embeddings of 4 images take")
    stage_of(method, "head")
    assert not (tmp_path / "embeddings").exists()


def test_the_precision_of_a_run_leaves_no_trace_in_what_is_cached(tmp_path, sam_file):
    method = stored(tmp_path, sam=sam_file)
    stage = stage_of(method, "common")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stage.step(batch()._replace(image=batch().image.bfloat16()), 0.5)
    image = batch().image.bfloat16().float()
    with torch.no_grad():
        expected = method.teacher.encode(image, None).half()
    kept = torch.from_numpy(method.embeddings.cache.values.copy())
    torch.testing.assert_close(kept, expected, rtol=2e-3, atol=2e-3)


def test_a_cache_needs_a_run():
    with pytest.raises(UserError, match="needs a run's folder"):
        stage_of(build(cached=True), "common")


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("cached", [False, True])
def test_resumed_in_every_stage_is_uninterrupted(tmp_path, monkeypatch, cached):
    update, calls = Trainer._update, []

    def dying(self, stage):
        calls.append(1)
        if len(calls) in (2, 5, 8, 11):  # the second update of each stage; it is then done again
            raise Killed
        update(self, stage)

    def run(folder):
        seed_everything(0)
        store = Store(folder / "embeddings", tuple(range(10)), lambda line: None)
        config = ESPMedSAMConfig(sam="tiny", batch_size=2, cached=cached)
        method = ESPMedSAM(config, Task(2, (SIZE, SIZE), ("",), 6, 4, store=store))
        log = run_toy(method, folder, toy_data(SIZE), iterations=8, validate_every=1)
        return method.state_dict(), log

    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", dying)
        for _ in range(4):
            with pytest.raises(Killed):
                run(tmp_path / "cut")
        again = run(tmp_path / "cut")
    assert whole[1] == again[1]
    assert all(torch.equal(value, again[0][key]) for key, value in whole[0].items())
    assert b'"teacher"' in whole[1]  # watched in S3


def test_the_report_shows_what_was_learnt():
    method = build().eval()
    entries = [{"stage": "head", "validation": {"dice": 0.5}, "watched": {"teacher": 0.75, "routed": 0.25}}]
    with torch.inference_mode():
        seen = method.watched(batch().image, batch().modality)
        assert set(seen) == {"teacher", "routed", "student"}
        torch.testing.assert_close(seen["student"], method.student(batch().image, batch().modality))
        torch.testing.assert_close(seen["routed"], method.student(batch().image))
        remarks = method.remarks(entries, batch())
    assert "0.500" in remarks.sentences[-1]
    assert "0.750" in remarks.sentences[-1]
    assert [picture.shape for _, picture in remarks.pictures] == [(SIZE, SIZE, 3)] * 4
    none = build(patch_prompt="none", modalities=("",)).eval()
    assert none.remarks([], batch()).pictures == ()


def test_the_report_draws_no_patches_of_classes_that_the_modality_lacks():
    """Modality 0 has class 1, which is nowhere here, modality 1 class 2, which is everywhere."""
    method = build(classes=3, modality_classes=((1,), (2,))).eval()
    with torch.no_grad():
        for patch, bias in zip(method.student.heads[0].prompt.patch, (-9.0, 9.0), strict=True):
            patch.weight.zero_()
            patch.bias.fill_(bias)
    made = batch(classes=3)
    dark, lit = (picture for _, picture in method.remarks([], made).pictures[:2])
    assert np.array_equal(dark, drawn(made.image[0], torch.zeros(1, 1)))
    assert np.array_equal(lit, drawn(made.image[1], torch.ones(1, 1)))
