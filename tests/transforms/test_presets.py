from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.transforms.presets import (
    FLIPS,
    PRESETS,
    BySupervision,
    Preset,
    evaluation,
    strong,
    weak,
    weak_strong,
    weak_turned,
    with_flips,
    with_view,
)
from segdistill.types import Batch, UserError


def make_batch(rows: int = 6, size: tuple[int, int] = (48, 64), labelled: list[bool] | None = None) -> Batch:
    known = labelled if labelled is not None else [row % 2 == 0 for row in range(rows)]
    return Batch(
        image=torch.rand(rows, 3, *size),
        view=None,
        mask=torch.randint(0, 3, (rows, *size)),
        labelled=torch.tensor(known, dtype=torch.bool),
        classes=torch.ones(rows, 3, dtype=torch.bool),
        modality=torch.arange(rows) % 2,
        index=torch.arange(rows) + 100,
        supervised=tuple(known),
    )


def assert_same(left: Batch, right: Batch) -> None:
    for name, a, b in zip(Batch._fields, left, right, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, name


@pytest.mark.parametrize("name", PRESETS)
@given(
    rows=st.integers(0, 4),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    labelled=st.integers(0, 15),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15, deadline=None)
def test_contract(name: str, rows: int, size: tuple[int, int], labelled: int, seed: int) -> None:
    torch.manual_seed(seed)
    batch = make_batch(rows, size, [bool(labelled >> i & 1) for i in range(rows)])
    torch.manual_seed(seed)
    done = PRESETS[name](batch)
    torch.manual_seed(seed)
    assert_same(done, PRESETS[name](batch))
    assert done.image.shape == batch.image.shape
    assert done.image.dtype == torch.float32
    assert done.mask.dtype == torch.long
    for field in ("labelled", "classes", "modality", "index"):
        assert torch.equal(getattr(done, field), getattr(batch, field))
    assert done.known == tuple(batch.labelled.tolist())
    if rows:
        assert done.image.min() >= 0
        assert done.image.max() <= 1
    for row in range(rows):
        assert set(done.mask[row].unique().tolist()) <= set(batch.mask[row].unique().tolist())


@pytest.mark.parametrize("preset", [weak, strong, weak_strong])
def test_seeds_differ(preset: Preset) -> None:
    batch = make_batch()
    torch.manual_seed(0)
    first = preset(batch)
    torch.manual_seed(1)
    assert not torch.equal(first.image, preset(batch).image)


def test_evaluation_is_the_identity() -> None:
    batch = make_batch()
    state = torch.get_rng_state()
    assert evaluation(batch) is batch
    assert torch.equal(state, torch.get_rng_state())


def test_the_label_stays_under_a_hole() -> None:
    """All of the image is foreground, so every label is 1 whatever moves, and each hole is over foreground."""
    torch.manual_seed(0)
    batch = make_batch(8)._replace(image=torch.full((8, 3, 48, 64), 0.6), mask=torch.ones(8, 48, 64, dtype=torch.long))
    done = strong(batch)
    assert (done.image == 0).any()
    assert (done.mask == 1).all()


@pytest.mark.parametrize(("preset", "share"), [(weak, (0.003, 0.02)), (strong, (0.015, 0.04))])
def test_dropped_share_of_the_image(preset: Preset, share: tuple[float, float]) -> None:
    """weak: .5 x 6.5 holes of 1/400 = .8 %; strong: .7 x 15 = 2.6 %, less where holes overlap."""
    torch.manual_seed(0)
    batch = make_batch(400, (40, 40))._replace(image=torch.ones(400, 3, 40, 40))
    dropped = (preset(batch).image == 0).float().mean().item()
    assert share[0] < dropped < share[1]


@pytest.mark.parametrize("preset", [weak, strong])
def test_view_shares_the_geometry_and_has_its_own_light(preset: Preset) -> None:
    torch.manual_seed(0)
    batch = make_batch(16)._replace(image=0.3 + 0.4 * torch.rand(16, 3, 48, 64))
    torch.manual_seed(7)
    plain = preset(batch)
    torch.manual_seed(7)
    seen = with_view(preset)(batch)
    assert_same(seen._replace(view=None), plain)  # asking for a view changes nothing else
    assert seen.view is not None
    factors = []
    for row in range(16):
        image, view = seen.image[row], seen.view[row]
        inside = (image > 0) & (image < 1) & (view > 0) & (view < 1)
        a, b = image[inside].double(), view[inside].double()
        correlation = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        assert correlation > 0.9999  # one is an affine function of the other: same geometry, no noise
        factors.append(round((b.std() / a.std()).item(), 3))
        assert (view == 0).sum() <= (image == 0).sum()
    assert len(set(factors)) == 16  # each row has its own


def test_weak_strong_gives_each_row_its_preset_and_keeps_the_order() -> None:
    def mark(value: float) -> Preset:
        def preset(batch: Batch) -> Batch:
            return batch._replace(image=batch.image * 0 + value + batch.index[:, None, None, None])

        return preset  # type: ignore[return-value]

    batch = make_batch(5, (4, 4), [False, True, True, False, True])
    done = BySupervision(mark(0.5), mark(0.25))(batch)
    assert done.image[:, 0, 0, 0].tolist() == [100.25, 101.5, 102.5, 103.25, 104.5]
    assert_same(done._replace(image=batch.image), batch)


@pytest.mark.parametrize("labelled", [True, False])
def test_weak_strong_with_one_kind_of_row_is_that_preset(labelled: bool) -> None:
    batch = make_batch(4, labelled=[labelled] * 4)
    torch.manual_seed(3)
    expected = (weak if labelled else strong)(batch)
    torch.manual_seed(3)
    assert_same(weak_strong(batch), expected)


def test_a_view_per_supervision() -> None:
    done = BySupervision(with_view(weak), with_view(strong))(make_batch(5))
    assert done.view is not None
    assert done.view.shape == done.image.shape


def test_the_input_is_not_changed() -> None:
    batch = make_batch()
    copy = Batch(*(field.clone() if isinstance(field, torch.Tensor) else field for field in batch))
    with_view(strong)(batch)
    assert_same(batch, copy)


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("preset", [weak, strong, weak_strong, weak_turned, with_view(weak)])
def test_only_the_flips_that_are_allowed(preset: Preset, flips: str) -> None:
    """The label says in which quarter a pixel was; which it is in afterwards, seen at the quarters' middles."""
    quarters = torch.zeros(64, 64, dtype=torch.long)
    quarters[:32, 32:], quarters[32:, :32], quarters[32:, 32:] = 1, 2, 3
    batch = make_batch(60, (64, 64))._replace(mask=quarters.expand(60, 64, 64))
    torch.manual_seed(0)
    middles = with_flips(preset, flips)(batch).mask[:, 16::32, 16::32].flatten(1)
    seen = {tuple(row) for row in middles.tolist()}
    plain, mirrored, upside_down, turned = (0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)
    allowed = {
        "none": {plain},
        "horizontal": {plain, mirrored},
        "vertical": {plain, upside_down},
        "both": {plain, mirrored, upside_down, turned},
    }[flips]
    assert seen >= allowed
    if preset is not weak_turned or flips != "both":
        assert seen == allowed
    else:
        assert len(seen) == 8


def test_the_flips_of_a_strangers_augmentation_are_unknown() -> None:
    assert with_flips(evaluation, "none") is evaluation
    with pytest.raises(UserError, match="--flips none"):
        with_flips(lambda batch: batch, "none")
