"""Pictures that are the same but not equal: saved again as JPEG, resized, the next frame of a video.

Candidates share most of a 64-bit perceptual hash (signs of the low DCT frequencies about their median; Zauner 2010).
Medical images of one kind look alike, and a plain hash drowns in false alarms. So it is taken of an image's difference
from the set's mean, and a candidate is confirmed where the fine structure of most 8 x 8 blocks of a 64 x 64 thumbnail
agrees; blocks that look the same in all images of the set (the field of view's edge, a burned-in frame) say nothing and
are left out. Not here: mirrored, rotated or cropped copies.

The limits were set on eight public sets (docs/how-to/check.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, BLOCK = 64, 8  # of a thumbnail and of its blocks, pixels
HASH_BITS = 10  # that may differ between candidates, of 64
ALIKE = 0.8  # median block correlation of a confirmed pair
EQUAL = 0.96  # the same over all blocks, shared ones too: enough by itself
_TEXTURE = 2.0  # grey levels (root mean square) from which a block says something
_MIN_BLOCKS = 8  # that say something, in an image that can be compared
_SHARED = 0.5  # mean correlation between images from which a block is the set's, not the image's
_MIN_IMAGES, _SAMPLE = 8, 1000  # to judge that by: at least, at most
_ROWS, _PAIRS = 128, 2048  # handled at a time, for memory
LISTED = 10_000  # pairs of a kind; the frames of one scene make millions, which take minutes and say no more


class _Blocks(NamedTuple):
    """Fine structure of N thumbnails: K blocks of P pixels each."""

    unit: NDArray[np.float32]  # (N, K, P), each block without its mean and slope, scaled to length 1
    texture: NDArray[np.float32]  # (N, K), root mean square before that, grey levels


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (H, W, 3) to a grey (64, 64), each pixel the mean of its area."""
    return np.array(Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """One 64-bit hash for each of (N, 64, 64) thumbnails: of its difference from the mean of a set of 8 or more."""
    from scipy.fft import dctn

    count = len(thumbnails)
    coarse = thumbnails.reshape(count, SIDE // 2, 2, SIDE // 2, 2).mean((2, 4), dtype=np.float32)
    if count >= _MIN_IMAGES:
        coarse -= coarse.mean(0)
    low = dctn(coarse, axes=(1, 2), norm="ortho")[:, :8, :8].reshape(count, 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False  # the mean brightness
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def near_pairs(
    thumbnails: NDArray[np.uint8], known: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that are the same, among (N, 64, 64) thumbnails.

    The first LISTED pairs across splits, and as many of the others.

    Args:
        thumbnails: From `thumbnail`.
        known: A name for each; images of one name are not compared with each other, except under the empty name.
        splits: The split of each, "" where it has none; None: nobody has.
    """
    if len(thumbnails) < 2:
        return []
    structured = np.concatenate([(_blocks(part).texture > _TEXTURE).sum(1) for part in _portions(thumbnails)])
    kept = np.flatnonzero(structured >= _MIN_BLOCKS)  # black slices resemble each other, and nobody minds
    pictures = thumbnails[kept]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(known or ()))}
    names = np.array([numbers[known[i]] if known and known[i] else -1 for i in kept.tolist()], np.int64)
    split = np.array([splits[i] if splits else "" for i in kept.tolist()], np.str_)
    own = ~_shared_blocks(pictures)
    found: list[tuple[int, int]] = []
    room = np.array([LISTED, LISTED])  # for pairs within a split, across splits
    for pairs in _candidates(perceptual_hashes(pictures), names):
        one, other = split[pairs.T]
        across = ((one != other) & (one != "") & (other != "")).astype(np.intp)
        pairs, across = pairs[room[across] > 0], across[room[across] > 0]
        if not len(pairs):
            continue
        first, inverse = np.unique(pairs, return_inverse=True)
        same = _same(_blocks(pictures[first]), inverse.reshape(pairs.shape), own)
        for (i, j), kind in zip(pairs[same].tolist(), across[same].tolist(), strict=True):
            if room[kind]:
                room[kind] -= 1
                found.append((int(kept[i]), int(kept[j])))
    return found


def _portions(thumbnails: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(thumbnails), _PAIRS):
        yield thumbnails[start : start + _PAIRS]


def _blocks(thumbnails: NDArray[np.uint8]) -> _Blocks:
    """Fine structure: what a plane fitted to each block leaves."""
    across = SIDE // BLOCK
    pixels = thumbnails.reshape(-1, across, BLOCK, across, BLOCK).swapaxes(2, 3)
    values = pixels.reshape(-1, across * across, BLOCK * BLOCK).astype(np.float32)
    y, x = np.mgrid[:BLOCK, :BLOCK] - (BLOCK - 1) / 2
    plane = np.stack([np.ones(BLOCK * BLOCK), y.ravel(), x.ravel()]).astype(np.float32)
    plane /= np.linalg.norm(plane, axis=1, keepdims=True)
    values -= (values @ plane.T) @ plane
    texture = np.sqrt(np.square(values).mean(2))
    values /= np.maximum(texture * BLOCK, 1e-6)[:, :, None]
    return _Blocks(values, texture)


def _shared_blocks(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Blocks (K,) whose structure is the same in most images of the set; none where there are too few to say so."""
    sample = thumbnails[:: max(1, len(thumbnails) // _SAMPLE)]
    unit, texture = _blocks(sample)
    if len(sample) < _MIN_IMAGES:
        return np.zeros(texture.shape[1:], bool)
    says = texture > _TEXTURE
    count = says.sum(0)
    total = np.square((unit * says[:, :, None]).sum(0)).sum(1)  # of all pairs, and of each image with itself
    mean = (total - count) / np.maximum(count * (count - 1), 1)
    shared: NDArray[np.bool_] = (count * 2 > len(sample)) & (mean > _SHARED)
    return shared


def _candidates(hashes: NDArray[np.uint64], names: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Pairs (P, 2), a portion at a time, whose hashes are near and whose names are not the same."""
    for start in range(0, len(hashes), _ROWS):
        rows = slice(start, start + _ROWS)
        near = np.bitwise_count(hashes[rows, None] ^ hashes[None, start:]) <= HASH_BITS
        near &= (names[rows, None] != names[None, start:]) | (names[rows, None] < 0)
        i, j = np.nonzero(np.triu(near, 1))
        pairs = np.stack([i, j], 1) + start
        for part in range(0, len(pairs), _PAIRS):
            yield pairs[part : part + _PAIRS]


def _same(blocks: _Blocks, pairs: NDArray[np.int64], own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of (P, 2) pairs show the same picture."""
    i, j = pairs[:, 0], pairs[:, 1]
    correlation = np.einsum("nkp,nkp->nk", blocks.unit[i], blocks.unit[j])
    says = np.maximum(blocks.texture[i], blocks.texture[j]) > _TEXTURE
    same: NDArray[np.bool_] = (_median(correlation, says & own) > ALIKE) | (_median(correlation, says) > EQUAL)
    return same


def _median(values: NDArray[np.float32], counted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Lower median (P,) of the counted values of each row of (P, K); -1 where they are too few."""
    ordered = np.sort(np.where(counted, values, np.float32(np.inf)), axis=1)
    count = counted.sum(1)
    median: NDArray[np.float32] = ordered[np.arange(len(ordered)), np.maximum(count - 1, 0) // 2]
    return np.where(count >= _MIN_BLOCKS, median, np.float32(-1))
