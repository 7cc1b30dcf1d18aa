"""ESP-MedSAM's teacher: SAM with something per modality; a control in a block against attention written out."""

import pytest
import torch
from sam_files import mini_sam, saved

from segdistill.models.medical_sam import MedicalSam, medical_sam
from segdistill.models.modality_heads import ModalityHeads
from segdistill.models.sam import EncoderBlock, load_sam
from segdistill.models.tiny_vit import Control


def heads(modalities=("a", "b", "c")):
    return ModalityHeads(3, modalities, [[1], [1, 2], [2]], patch_prompt="hard", joint_channels=None)


def loud(name="tiny", size=(64, 32)):
    """Every part of a modality far from 0."""
    torch.manual_seed(0)
    teacher = medical_sam(name, size, heads())
    for parameter in teacher.controllers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher.eval()


def vision_block(window, relative):
    from transformers.models.sam.configuration_sam import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamVisionLayer

    torch.manual_seed(0)
    config = SamVisionConfig(hidden_size=24, num_attention_heads=3, use_rel_pos=relative)
    config._attn_implementation = "eager"
    layer = SamVisionLayer(config, window)
    torch.nn.init.normal_(layer.attn.qkv.bias)
    if relative:
        for axis in "hw":
            setattr(layer.attn, f"rel_pos_{axis}", torch.nn.Parameter(torch.randn(2 * window - 1, 8)))
    return EncoderBlock(layer, 3, window, cut_first=False)


def written_out(block, window, control_row):
    """One window (n, n, 24) with the row's (key, value, bias): query by query, head by head."""
    n = len(window)
    q, k, v = block.attn.qkv(block.layer_norm1(window)).view(n * n, 3, 3, 8).unbind(1)
    key, value, bias = control_row
    out = torch.zeros(n * n, 3, 8)
    for head in range(3):
        for i in range(n * n):
            logits = [q[i, head] @ k[j, head] / 8**0.5 for j in range(n * n)]
            if block.attn.use_rel_pos:
                for j in range(n * n):
                    dy, dx = i // n - j // n, i % n - j % n
                    logits[j] = logits[j] + q[i, head] @ (
                        block.attn.rel_pos_h[dy + n - 1] + block.attn.rel_pos_w[dx + n - 1]
                    )
            logits.append(q[i, head] @ key[head] / 8**0.5 + bias)
            out[i, head] = torch.stack(logits).softmax(0) @ torch.stack([*v[:, head], value[head]])
    return block.attn.proj(out.view(n, n, 24))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_control_is_one_more_token_in_every_window(rows, relative):
    block = vision_block(3, relative)
    tokens = torch.randn(2, 3, 6, 24)  # two windows per row
    control = Control(torch.randn(rows, 3, 8), torch.randn(rows, 3, 8), torch.randn(rows), lambda x: 2 * x)
    with torch.no_grad():
        seen = block.attention(tokens, control)
        for i in range(2):
            own = [value[i % rows] for value in control[:3]]
            for at in (0, 3):
                expected = written_out(block, tokens[i, :, at : at + 3], own)
                torch.testing.assert_close(seen[i, :, at : at + 3], expected, atol=1e-5, rtol=1e-4)
        after = tokens + seen
        normed = block.layer_norm2(after)
        torch.testing.assert_close(block(tokens, control), after + block.mlp(normed) + 2 * normed)


def test_a_mixed_batch_is_its_rows_and_modalities_differ():
    teacher, image = loud(), torch.rand(4, 3, 64, 32)
    modality = torch.tensor([1, 0, 2, 1])
    with torch.no_grad():
        mixed, embedding = teacher.run(image, modality), teacher.encode(image, modality)
        for i, m in enumerate(modality):
            alone = teacher.run(image[[i]], m[None])
            torch.testing.assert_close(mixed.logits[[i]], alone.logits, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(mixed.patch[[i]], alone.patch, rtol=1e-3, atol=1e-3)
            assert (teacher.encode(image[[i]], (m[None] + 1) % 3) - embedding[[i]]).abs().max() > 0.01


def test_it_starts_as_sam_but_for_tokens_that_say_nothing(tmp_path):
    torch.manual_seed(0)
    path = saved(tmp_path / "sam.pth", mini_sam())
    teacher, sam = medical_sam(path, (96, 64), heads()), load_sam(path, (96, 64))
    image, modality = torch.rand(2, 3, 96, 64), torch.tensor([2, 0])
    with torch.no_grad():
        expected = sam.encode(image)
        torch.testing.assert_close(teacher.encode(image, None), expected)
        for name, parameter in teacher.controllers.named_parameters():
            if name.endswith("bias") and parameter.ndim == 0:
                parameter.fill_(-1e4)  # the tokens shut: what is left is SAM
        torch.testing.assert_close(teacher.encode(image, modality), expected)
    assert all(not p.requires_grad for p in teacher.sam.parameters())
    assert {id(p) for p in teacher.own_parameters()}.isdisjoint(map(id, teacher.sam.parameters()))


def test_without_weights_all_of_it_trains():
    teacher = medical_sam("tiny", (32, 32), heads())
    assert {id(p) for p in teacher.own_parameters()} == set(map(id, teacher.parameters()))
    teacher.run(torch.rand(2, 3, 32, 32), torch.tensor([1, 1])).logits.clamp(min=-100).sum().backward()
    assert teacher.controllers[1][0].key.grad is not None
    assert teacher.controllers[1][0].adapter.up.weight.grad.any()
    assert all(p.grad is None for p in teacher.controllers[0].parameters())


@pytest.mark.parametrize("size", [(40, 70), (33, 32)])
def test_any_size_is_padded_as_the_students(size):
    teacher = medical_sam("tiny", size, heads())
    assert isinstance(teacher, MedicalSam)
    out = teacher.run(torch.rand(1, 3, *size), torch.tensor([0]))
    assert out.logits.shape == (1, 3, *size)
    assert out.patch.shape == (1, 2, -(-size[0] // 32), -(-size[1] // 32))
