"""Polyp-PVT is KDAS's: its numbers, its keys, its files; and what it adds: any size, any number of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_batches
from reference.fill import fill, make_input
from safetensors.torch import save_file

from segdistill.models.polyp_pvt import enlarged
from segdistill.models.polyp_pvt_official import load_polyp_pvt, polyp_pvt_state
from segdistill.models.pvt import VARIANTS, ReducedAttention, from_official, load_backbone, pvt_v2, variant_of
from segdistill.models.students import build_student, student_spec
from segdistill.models.weights import read_weights
from segdistill.types import UserError

TINY = json.loads((Path(__file__).parents[1] / "reference" / "polyp_pvt_tiny.json").read_text(encoding="utf-8"))
COUNTS = {"polyppvt_tiny_352": ("b0", 3_650_740), "polyppvt_352": ("b2", 25_107_604)}


def filled(keys):
    return {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in keys.items()}


@pytest.fixture(scope="module")
def official():
    """KDAS's student as its code would save it, counters of batch norm included."""
    state = filled(TINY["keys"])
    counters = {k.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for k in state if "running_mean" in k}
    return state | counters


@pytest.fixture(scope="module")
def network(official):
    student = build_student("polyp_pvt", classes=2, backbone="b0").eval()
    student.load_state_dict(polyp_pvt_state(official))
    return student


def outputs(network):
    """What the reference records; its input is normalised already."""
    with torch.no_grad():
        features = network.backbone(torch.from_numpy(make_input(51, (2, 3, 352, 352))))
        maps = network.maps(features)
    named = {f"backbone{i}": feature for i, feature in enumerate(features)}
    return named | {name: enlarged(m)[:, 1:] for name, m in zip(("p1", "p2"), maps, strict=True)}


def check(found, wanted):
    for name, case in wanted.items():
        assert list(found[name].shape) == case["shape"]
        largest = max(abs(case["min"]), abs(case["max"]))
        np.testing.assert_allclose(found[name].flatten()[case["idx"]], case["values"], atol=1e-4 * largest)


def test_outputs_are_kdas(network):
    """reference/polyppvt_tiny_352 (KDAS @ 647d51b, torch 2.13.0 CPU float32), official keys."""
    assert sum(p.numel() for p in network.parameters()) == TINY["n_params"] == 3_650_740
    check(outputs(network), TINY["outputs"])


@pytest.mark.shared
@pytest.mark.parametrize("name", COUNTS)
def test_outputs_are_those_of_the_reference(name, shared):
    """reference/NAME, torch 2.13.0 CPU float32: teacher and student, every stage of the backbone."""
    backbone, count = COUNTS[name]
    keys = json.loads((shared / "reference" / f"{name}.keys.json").read_text(encoding="utf-8"))["keys"]
    wanted = json.loads((shared / "reference" / f"{name}.outputs.json").read_text(encoding="utf-8"))["outputs"]
    student = build_student("polyp_pvt", classes=2, backbone=backbone).eval()
    assert sum(p.numel() for p in student.parameters()) == count
    weights = filled({key: shape for key, (shape, kind) in keys.items() if kind == "float32"})
    missing, unexpected = student.load_state_dict(polyp_pvt_state(weights), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    check(outputs(student), wanted)


def test_the_logits_are_the_sum_of_both_maps_and_own_their_normalisation(network):
    image = torch.rand(2, 3, 96, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        shown = network.explain(image)
        first, second = network.maps(network.backbone((image - mean[:, None, None]) / std[:, None, None]))
        both = torch.nn.functional.interpolate(first, scale_factor=8, mode="bilinear")
        both = both + torch.nn.functional.interpolate(second, scale_factor=8, mode="bilinear")
        assert torch.equal(shown.logits, network(image))
    assert shown.first.shape == shown.second.shape == (2, 1, 12, 8)
    torch.testing.assert_close(shown.logits.softmax(1)[:, 1:], both.sigmoid())


def test_a_map_pair_per_foreground_class():
    network = build_student("polyp_pvt", classes=4)
    shown = network.explain(torch.rand(2, 3, 64, 64))
    assert shown.first.shape == shown.second.shape == (2, 3, 8, 8)
    assert shown.logits.shape == (2, 4, 64, 64)
    assert not shown.logits[:, 0].any()


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (33, 90)])
def test_a_batch_of_one_trains_at_any_size(size):
    network = build_student("polyp_pvt", classes=2).train()
    logits = network(torch.rand(1, 3, *size))
    assert logits.shape == (1, 2, *size)
    logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)
    reached = [p.grad is not None and bool(p.grad.any()) for p in network.heads.parameters()]
    assert all(reached)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_attention_is_that_of_transformers(stage):
    """Its values and gradients on a grid that is not square; the last stage does not reduce its keys."""
    from transformers.models.pvt_v2.configuration_pvt_v2 import PvtV2Config
    from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2SelfAttention

    torch.manual_seed(0)
    width, heads, reduction = ((32, 1, 8), (64, 2, 4), (160, 5, 2), (256, 8, 1))[stage]
    theirs = PvtV2SelfAttention(PvtV2Config(), width, heads, reduction)
    ours = ReducedAttention(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 16 * 24, width, requires_grad=True)
    found, wanted = (module(x, 16, 24)[0] for module in (ours, theirs))
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * weight).sum(), [x, theirs.key.weight]) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_know_their_name(variant):
    with torch.device("meta"):
        network = pvt_v2(variant)
    assert variant_of(network) == variant


def test_the_one_that_is_not_there_is_named():
    with pytest.raises(UserError, match="b0, b1, b2"):
        build_student("polyp_pvt", classes=2, backbone="b9")


def test_official_file_of_kdas_is_read_whole(official, network, tmp_path):
    path = tmp_path / "größe mit Leerzeichen.pth"
    torch.save({f"module.{key}": value for key, value in official.items()}, path)
    loaded = load_polyp_pvt(path).eval()
    assert student_spec(loaded) == ("polyp_pvt", {"classes": 2, "backbone": "b0"})
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.shared
def test_official_file_of_polyp_pvt_is_recognised(shared, tmp_path):
    keys = json.loads((shared / "reference" / "polyppvt_352.keys.json").read_text(encoding="utf-8"))["keys"]
    torch.save({k: torch.zeros(shape, dtype=getattr(torch, kind)) for k, (shape, kind) in keys.items()}, tmp_path / "p")
    assert student_spec(load_polyp_pvt(tmp_path / "p")).arguments == {"classes": 2, "backbone": "b2"}


@pytest.mark.parametrize("change", ["cut", "other", "more", "none"])
def test_files_that_are_no_polyp_pvt_are_one_line(official, tmp_path, change):
    path = tmp_path / "x.pth"
    state = dict(official)
    if change == "cut":
        del state["CFM.conv4.bn.weight"]
    if change == "other":
        state["decoder.weight"] = torch.zeros(3)
    if change == "more":
        state["out_SAM.weight"] = torch.zeros(1, 16, 1, 1)
    torch.save({"a": torch.zeros(1)} if change == "none" else state, path)
    with pytest.raises(UserError) as error:
        load_polyp_pvt(path)
    assert "\n" not in str(error.value)


def backbone_file(official, tmp_path):
    """A `pvt_v2_b0.pth`: the backbone's keys, and the head of the ImageNet classifier."""
    path = tmp_path / "pvt_v2_b0.pth"
    state = {k.removeprefix("backbone."): v for k, v in official.items() if k.startswith("backbone.")}
    torch.save(state | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}, path)
    return path


def same(a, b):
    return all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("give", [lambda file: file, lambda file: file.parent], ids=["file", "folder"])
def test_backbone_weights_of_pvt(official, network, tmp_path, give):
    backbone = pvt_v2("b0")
    load_backbone(backbone, str(give(backbone_file(official, tmp_path))))
    assert same(backbone.state_dict(), network.backbone.state_dict())


def test_backbone_weights_of_the_hub(official, network, tmp_path, monkeypatch):
    """transformers' own classifier writes the hub's layout; here from the cache, without a network."""
    import huggingface_hub
    from transformers.models.pvt_v2.modeling_pvt_v2 import PvtV2Config, PvtV2ForImageClassification

    classifier = PvtV2ForImageClassification(PvtV2Config())
    hub = classifier.state_dict()
    own = network.backbone.state_dict()
    state = {key: own.get(key.removeprefix("pvt_v2.encoder."), value) for key, value in hub.items()}
    save_file(state, tmp_path / "model.safetensors")
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda repo, file, **how: asked.append((repo, file)) or tmp_path / "model.safetensors",
    )
    backbone = pvt_v2("b0")
    load_backbone(backbone, "hub")
    assert asked == [("OpenGVLab/pvt_v2_b0", "model.safetensors")]
    assert same(backbone.state_dict(), own)
    assert from_official(state).keys() == own.keys()


def test_without_a_network_the_way_out_is_said(monkeypatch):
    import huggingface_hub

    def offline(repo, file, **how):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        UserError,
        match=r"fetch https://huggingface\.co/OpenGVLab/pvt_v2_b0/.* and give that folder",
    ) as error:
        load_backbone(pvt_v2("b0"), "hub")
    assert "\n" not in str(error.value)


def test_weights_of_another_backbone_are_refused(official, tmp_path):
    path = backbone_file(official, tmp_path)
    with torch.device("meta"):
        other = pvt_v2("b1")
    with pytest.raises(UserError, match="does not hold the weights of PVTv2-b1"):
        load_backbone(other, str(path))


class Payload:
    """Code that a careless reader would run."""

    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("kind", ["missing", "garbage", "cut", "code", "values", "safetensors"])
def test_foreign_files_give_tensors_or_one_line(tmp_path, kind):
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind in ("garbage", "safetensors"):
        path.write_bytes(b"<html>quota exceeded</html>")
    if kind == "cut":
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:700])
    if kind == "code":
        torch.save({"a": Payload()}, path)
    if kind == "values":
        torch.save({"epoch": 3, "a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"x\.") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not Payload.ran


def test_the_graph_agrees_with_torch(official, tmp_path):
    """The ONNX file is refused unless onnxruntime computes what torch does; at a size that needs padding."""
    from segdistill.deploy.artefact import Card, save_student
    from segdistill.deploy.export import export_onnx, synthetic_images

    network = build_student("polyp_pvt", classes=3, backbone="b0").eval()
    state = polyp_pvt_state(official)
    generator = torch.Generator().manual_seed(0)
    for head in ("heads.0", "heads.1"):
        state[f"{head}.weight"] = state[f"{head}.weight"] + 0.1 * torch.randn(2, 32, 1, 1, generator=generator)
        state[f"{head}.bias"] = state[f"{head}.bias"].expand(2) + torch.tensor([0.6, -0.2])
    network.load_state_dict(state)
    image = torch.from_numpy(synthetic_images((80, 72))[0]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        assert network(image).argmax(1).unique().tolist() == [0, 1, 2]  # there is something to agree on
    card = Card("polyp_pvt", {"classes": 3, "backbone": "b0"}, "kdas", ("a", "b", "c"), ((0, 0, 0),) * 3, (80, 72), "")
    save_student(tmp_path / "s", network, card)
    check = export_onnx(tmp_path / "s", tmp_path / "s.onnx")
    assert check.max_difference < 1e-3
    assert check.label_agreement > 0.9999
    assert_batches(tmp_path / "s.onnx", synthetic_images((80, 72))[:1] * 2)
