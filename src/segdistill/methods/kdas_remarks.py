"""What a KDAS run says in its report: what distillation gained, and who attends to what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..losses.attention import row_attention

WORTH = 0.02  # Dice that a teacher must be ahead of the control on validation to have anything to distil
GAP = 4  # pixels between the parts of a picture


def sentences(log: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the best validation Dice of teacher, control and student say; nothing where nothing was validated."""
    entries = [entry for entry in log if "validation" in entry]
    stages = dict.fromkeys(entry["stage"] for entry in entries)
    best = {name: max(e["validation"]["dice"] for e in entries if e["stage"] == name) for name in stages}
    watched = [entry["watched"]["teacher"] for entry in entries if "watched" in entry]
    best |= {"teacher": watched[-1]} if watched else {}
    if not {"teacher", "student"} <= best.keys():
        return
    teacher, student, control = best["teacher"], best["student"], best.get("control")
    if control is None:
        yield f"On validation the teacher's Dice was {teacher:.3f}, the student's {student:.3f} at its best."
        yield "What distillation gained is not known: there was no control (--kdas.control true)."
        return
    yield (
        f"On validation the teacher's Dice was {teacher:.3f}, the student's {student:.3f} at its best, and that of the "
        f"same student without distillation, same schedule, {control:.3f}."
    )
    gain, ahead = 100 * (student - control), 100 * (teacher - control)
    if teacher - control < WORTH:
        yield (
            f"Nothing to distil: the teacher is not {100 * WORTH:.0f} Dice points better than the student without "
            f"distillation ({ahead:+.1f}). With distillation the student is {abs(gain):.1f} points "
            f"{'ahead of' if gain > 0 else 'behind'} it."
        )
    elif gain > 0:
        yield f"Distillation gained {gain:.1f} Dice points, of the {ahead:.1f} that the teacher was ahead."
    else:
        yield f"Distillation gained nothing ({gain:+.1f} Dice points), though the teacher was {ahead:.1f} ahead."
    yield "One training each, on the images that chose the weights: of a small difference, repeat it with other seeds."


def drawn(image: Tensor, maps: Sequence[Tensor], temperature: float) -> NDArray[np.uint8]:
    """The image (3, H, W), and A of each map (K, h, w), its first class, as tall as the image; the largest is white."""
    seen = torch.stack([row_attention(x[None], temperature)[0, 0].exp() for x in maps])  # (N, h, h)
    height = image.shape[1]
    tall = F.interpolate(seen[:, None] / seen.max(), (height, height), mode="nearest-exact")
    strip = torch.cat([image, *F.pad(tall.expand(-1, 3, -1, -1), (GAP, 0), value=1.0)], 2)
    return cast(NDArray[np.uint8], (255 * strip).round().byte().permute(1, 2, 0).cpu().numpy())
