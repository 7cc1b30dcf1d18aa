"""One paper = one file; METHODS is the one list."""

from typing import Any

from .kdas import KDAS
from .mean_teacher import MeanTeacher
from .supervised import Supervised
from .unimatch import UniMatch

METHODS: dict[str, Any] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "unimatch": UniMatch,
    "kdas": KDAS,
}
