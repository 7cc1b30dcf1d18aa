"""SAM: the official numbers, transformers' own modules as oracle, every way to name its weights."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.fill import fill, make_input
from safetensors.torch import save_file

from segdistill.models import sam_weights
from segdistill.models.freeze import freeze
from segdistill.models.sam import MEAN, STD, EncoderBlock, build_sam, load_sam
from segdistill.types import UserError

MINI = json.loads((Path(__file__).parents[1] / "reference" / "sam_mini.json").read_text(encoding="utf-8"))


def filled(keys, prefix=""):
    return {prefix + key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in keys.items()}


def official_mini():
    return filled(MINI["encoder"], "image_encoder.") | filled(MINI["prompt_and_decoder"])


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """A small SAM in the official layout: depth 4, width 192, 256 pixels."""
    path = tmp_path_factory.mktemp("ein Ordner") / "kleines sam.pth"
    torch.save(official_mini(), path)
    return path


def as_image(normalised):
    """The image in [0, 1] whose normalisation is the given array."""
    mean, std = (np.array(values, np.float32)[:, None, None] / 255 for values in (MEAN, STD))
    return torch.from_numpy(normalised * std + mean)


def assert_values(actual, expected):
    assert list(actual.shape) == expected["shape"]
    largest = max(abs(expected["min"]), abs(expected["max"]))
    np.testing.assert_allclose(actual.detach().flatten()[expected["idx"]], expected["values"], atol=1e-4 * largest)


def test_the_encoder_is_sams(mini):
    """reference/sam_encoder_mini_256 (segment-anything 1.0, torch 2.13.0 CPU float32)."""
    sam = load_sam(str(mini), (256, 256))
    with torch.no_grad():
        assert_values(sam.encode(as_image(make_input(13, (2, 3, 256, 256)))), MINI["image_embeddings"])
    assert sam.origin.file == str(mini)
    assert len(sam.origin.sha256) == 64
    assert "torchvision" not in sys.modules


@pytest.mark.shared
def test_every_prompt_is_sams(shared, tmp_path):
    """reference/sam_vit_b_1024 (segment-anything 1.0, torch 2.13.0 CPU float32), one encoder pass."""
    keys = json.loads((shared / "reference" / "sam_vit_b_1024.keys.json").read_text(encoding="utf-8"))["keys"]
    expected = json.loads((shared / "reference" / "sam_vit_b_1024.outputs.json").read_text(encoding="utf-8"))["outputs"]
    path = tmp_path / "sam_vit_b.pth"
    torch.save(filled({key: shape for key, (shape, _) in keys.items()}), path)
    sam = load_sam(str(path), (1024, 1024))
    path.unlink()
    points, labels = torch.tensor([[[300.0, 400], [512, 100]]]), torch.tensor([[1, 0]])
    box, mask = torch.tensor([[100.0, 150, 800, 700]]), torch.from_numpy(make_input(12, (1, 1, 256, 256)))
    with torch.no_grad():
        embedding = sam.encode(as_image(make_input(11, (1, 3, 1024, 1024))))
        assert_values(embedding, expected["image_embeddings"])
        assert_values(sam.positions(), expected["dense_pe"])
        both = torch.cat([sam.point_prompt(points, labels, with_box=True), sam.box_prompt(box)], 1)
        for name, sparse, dense in (
            ("points", sam.point_prompt(points, labels), sam.no_mask(1)),
            ("box", sam.box_prompt(box), sam.no_mask(1)),
            ("points_box_mask", both, sam.mask_prompt(mask)),
        ):
            assert_values(sparse, expected[f"{name}.sparse"])
            assert_values(dense, expected[f"{name}.dense"])
            assert_values(sam.decode(embedding, sparse, dense)[:, None], expected[f"{name}.mm0.masks"])
            for several in (0, 1):
                masks, iou = sam.mask_decoder(embedding, sam.positions(), sparse[:, None], dense, bool(several))
                assert_values(masks[:, 0], expected[f"{name}.mm{several}.masks"])
                assert_values(iou[:, 0], expected[f"{name}.mm{several}.iou"])


@pytest.mark.parametrize(("window", "grid"), [(14, (16, 16)), (14, (5, 20)), (14, (14, 28)), (0, (5, 9)), (3, (4, 7))])
def test_a_block_is_transformers(window, grid):
    """Also where the grid is not square, and smaller or larger than a window."""
    from transformers.models.sam.configuration_sam import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionLayer

    torch.manual_seed(0)
    config = SamVisionConfig(hidden_size=24, num_attention_heads=3)
    config._attn_implementation = "eager"
    layer = SamVisionLayer(config, window)
    for axis, size in zip("hw", (window, window) if window else grid, strict=True):
        setattr(layer.attn, f"rel_pos_{axis}", torch.nn.Parameter(torch.randn(2 * size - 1, 8)))
    torch.nn.init.normal_(layer.attn.qkv.bias)
    tokens = torch.randn(2, *grid, 24)
    block = EncoderBlock(layer, 3, window, cut_first=False)
    torch.testing.assert_close(block(tokens), layer(tokens), atol=1e-5, rtol=1e-5)


def test_cutting_windows_first_pads_with_the_norms_bias():
    """Oracle: pad by hand, then run the block on one window that is full."""
    from transformers.models.sam.configuration_sam import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionLayer

    config = SamVisionConfig(hidden_size=24, num_attention_heads=3, use_rel_pos=False)
    config._attn_implementation = "eager"
    layer = SamVisionLayer(config, 6)
    torch.nn.init.normal_(layer.layer_norm1.bias)
    tokens = torch.randn(2, 4, 5, 24)
    full = torch.nn.functional.pad(tokens, (0, 0, 0, 1, 0, 2))
    expected = layer(full)[:, :4, :5]
    torch.testing.assert_close(EncoderBlock(layer, 3, 6, cut_first=True)(tokens), expected, atol=1e-5, rtol=1e-5)


def test_other_sizes_resize_the_positions(mini):
    same, other = load_sam(str(mini), (256, 256)), load_sam(str(mini), (128, 192))
    assert other.vision_encoder.pos_embed.shape == (1, 8, 12, 192)
    glob, local = other.vision_encoder.layers[1].attn, other.vision_encoder.layers[0].attn
    assert (len(glob.rel_pos_h), len(glob.rel_pos_w), len(local.rel_pos_h)) == (15, 23, 27)
    before, after = (s.vision_encoder.layers[1].attn.rel_pos_w.detach().numpy() for s in (same, other))
    at = (np.arange(23) + 0.5) * 31 / 23 - 0.5  # linear, half-pixel centres
    expected = np.stack([np.interp(at, np.arange(31), before[:, i]) for i in range(before.shape[1])], 1)
    np.testing.assert_allclose(after, expected, atol=1e-5)
    with torch.no_grad():
        assert other.encode(torch.rand(1, 3, 128, 192)).shape == (1, 256, 8, 12)


def test_a_smooth_position_keeps_its_place(mini):
    """A table that holds its own row's place holds it after the resize."""
    weights = sam_weights.read_sam(str(mini))
    ramp = (torch.arange(16) + 0.5) / 16
    weights.state["vision_encoder.pos_embed"] = ramp.view(1, 16, 1, 1).expand(1, 16, 16, 192)
    out = sam_weights.resized(weights.state, sam_weights.shape_of(weights.state, ""), (32, 8))[
        "vision_encoder.pos_embed"
    ]
    expected = (torch.arange(32) + 0.5) / 32
    torch.testing.assert_close(out[0, 4:-4, 3, 7], expected[4:-4], atol=4e-3, rtol=0)  # of 1/32 per row


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (112, 80)])
@pytest.mark.parametrize("name", ["tiny", "small"])
def test_sam_without_weights_says_something(name, size):
    torch.manual_seed(0)
    sam = load_sam(name, size)
    assert sam.origin is None
    h, w = size[0] // 16, size[1] // 16
    embedding = sam.encode(torch.rand(2, 3, *size))
    assert embedding.shape == (2, 256, h, w)
    assert embedding.std() > 0.1
    masks = sam.decode(embedding, torch.randn(6, 2, 256), sam.mask_prompt(torch.randn(6, 1, 4 * h, 4 * w)))
    assert masks.shape == (6, 4 * h, 4 * w)
    assert masks.std() > 1e-3
    masks.square().mean().backward()
    assert all(p.grad is not None for p in sam.vision_encoder.parameters())
    assert sam.decode(embedding, torch.empty(2, 0, 256), sam.no_mask(2)).shape == (2, 4 * h, 4 * w)


def test_prompts_are_folded_image_by_image():
    sam = load_sam("tiny", (64, 64)).eval()
    embedding, sparse, dense = torch.randn(2, 256, 4, 4), torch.randn(6, 2, 256), torch.randn(6, 256, 4, 4)
    with torch.no_grad():
        together = sam.decode(embedding, sparse, dense)
        for i in range(6):
            one = sam.decode(embedding[i // 3][None], sparse[i][None], dense[i][None])
            torch.testing.assert_close(together[i], one[0], atol=1e-5, rtol=1e-4)


def test_points_are_fractions_of_a_rectangle():
    """The same place in an image of another shape is the same prompt: pixel centres count from the corner."""
    wide, square = load_sam("tiny", (64, 128)), load_sam("tiny", (64, 64))
    square.load_state_dict({k: v for k, v in wide.state_dict().items() if "vision" not in k}, strict=False)
    a = wide.point_prompt(torch.tensor([[[100.5, 30.0]]]), torch.tensor([[1]]))
    b = square.point_prompt(torch.tensor([[[50.0, 30.0]]]), torch.tensor([[1]]))
    torch.testing.assert_close(a, b)


def test_windows_can_be_the_whole_grid(mini):
    sam = build_sam(sam_weights.read_sam(str(mini)), (128, 192), whole_windows=True)
    assert {block.window for block in sam.vision_encoder.layers} == {0}
    with torch.no_grad():
        image = torch.rand(1, 3, 128, 192)
        assert not torch.allclose(sam.encode(image), load_sam(str(mini), (128, 192)).encode(image), atol=1e-3)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A SAM as transformers saves it, and transformers' own output."""
    from transformers.models.sam.configuration_sam import SamConfig
    from transformers.models.sam.modeling_sam import SamModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "global_attn_indexes": [1],
        "image_size": 128,
        "initializer_range": 0.02,
    }
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 128})).eval()
    for layer in model.vision_encoder.layers:
        torch.nn.init.normal_(layer.attn.rel_pos_h)
    folder = tmp_path_factory.mktemp("hub") / "sam aus dem Netz"
    model.save_pretrained(folder)
    image, point = torch.rand(1, 3, 128, 128), torch.tensor([[[[20.0, 90.0]]]])
    mean, std = (torch.tensor(values).view(3, 1, 1) / 255 for values in (MEAN, STD))
    with torch.no_grad():
        out = model((image - mean) / std, input_points=point, multimask_output=False)
        embedding = model.get_image_embeddings((image - mean) / std)
    return folder, image, embedding, out.pred_masks[:, 0, 0]


def test_a_folder_from_the_hub_does_what_transformers_does(hub_folder):
    folder, image, embedding, masks = hub_folder
    sam = load_sam(str(folder), (128, 128))
    with torch.no_grad():
        torch.testing.assert_close(sam.encode(image), embedding, atol=1e-4, rtol=1e-4)
        sparse = sam.point_prompt(torch.tensor([[[20.0, 90.0]]]), torch.tensor([[1]]))
        ours = sam.decode(embedding, sparse, sam.no_mask(1))
    assert (ours - masks).abs().max() < 0.01 * masks.abs().max()  # its decoder's norms have another eps than SAM's


def test_medsam_sees_images_as_its_authors_trained_it(tmp_path):
    """bowang-lab/MedSAM @ 3e56a52, MedSAM_Inference.py: the encoder gets the image in [0, 1], no mean is taken off."""
    image = torch.from_numpy(make_input(13, (1, 3, 256, 256), "rand"))
    seen = {}
    for name in ("sam_vit_b.pth", "medsam_vit_b.pth"):
        torch.save(official_mini(), tmp_path / name)
        sam = load_sam(str(tmp_path / name), (256, 256))
        seen[name] = []
        sam.vision_encoder.patch_embed.projection.register_forward_pre_hook(
            lambda module, given, kept=seen[name]: kept.append(given[0])
        )
        with torch.no_grad():
            sam.encode(image)
    assert torch.equal(seen["medsam_vit_b.pth"][0], image)
    assert not torch.allclose(seen["sam_vit_b.pth"][0], image, atol=0.5)
    assert sam_weights.is_medsam("wanglab/medsam-vit-base")
    (tmp_path / "medsam project").mkdir()
    (tmp_path / "sam_vit_b.pth").rename(tmp_path / "medsam project" / "sam_vit_b.pth")
    assert not sam_weights.is_medsam(str(tmp_path / "medsam project" / "sam_vit_b.pth"))


def test_the_hubs_cache_is_enough(hub_folder, tmp_path, monkeypatch):
    """Without a network, in the hub's own cache layout."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--facebook--sam-vit-base" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes((hub_folder[0] / "model.safetensors").read_bytes())
    refs = tmp_path / "models--facebook--sam-vit-base" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_sam("facebook/sam-vit-base", (64, 64)).vision_encoder.pos_embed.shape == (1, 4, 4, 48)
    with pytest.raises(UserError, match=r"sam-vit-large/resolve/main/model.safetensors .*give that folder") as error:
        load_sam("facebook/sam-vit-large", (64, 64))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (
            "weights/sam_vit_b_01ec64.pth",
            r"fetch https://dl\.fbaipublicfiles\.com/.*/sam_vit_b_01ec64\.pth and save it as",
        ),
        ("medsam_vit_b.pth", "zenodo"),
        ("huge", "facebook/sam-vit-base"),
        ("my.pth", "do not exist"),
    ],
)
def test_a_missing_file_says_what_to_fetch(teacher, message):
    with pytest.raises(UserError, match=message):
        load_sam(teacher, (64, 64))


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "other", "nested", "object", "junk"])
def test_other_files_are_refused_in_one_line(tmp_path, fault):
    state = official_mini()
    path = tmp_path / "s.pth"
    first = "mask_decoder.iou_token.weight"
    if fault == "missing":
        del state[first]
    elif fault == "unknown":
        state["image_encoder.blocks.0.lora"] = torch.zeros(2)
    elif fault == "shape":
        state[first] = torch.zeros(2, 256)
    torch.save(
        {"missing": state, "unknown": state, "shape": state, "other": {"conv.weight": torch.zeros(2)}}.get(
            fault, {"model": state} if fault == "nested" else {"a": torch.nn.Identity()}
        ),
        path,
    )
    if fault == "junk":
        path.write_bytes(b"not weights" * 9)
    words = {"missing": "is missing", "unknown": "lora is unknown", "shape": r"\(2, 256\)", "other": "no SAM"}
    with pytest.raises(UserError, match=words.get(fault, r"named tensors|cannot be read")) as error:
        load_sam(str(path), (64, 64))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_no_code_runs_from_a_file(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "s.pth").write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
    with pytest.raises(UserError, match="named tensors"):
        load_sam(str(tmp_path / "s.pth"), (64, 64))
    assert not (tmp_path / "ran").exists()


def test_sizes_and_folders_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="multiples of 16, not 64 x 100"):
        load_sam("tiny", (64, 100))
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        load_sam(str(tmp_path), (64, 64))
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no SAM"):
        load_sam(str(tmp_path), (64, 64))


def test_freezing_spares_nothing(mini):
    sam = freeze(load_sam(str(mini), (64, 64)))
    assert not any(p.requires_grad for p in sam.parameters())
    assert "prompt_encoder.shared_embedding.positional_embedding" in dict(sam.named_buffers())
