"""One paper = one file; METHODS is the one list."""

from typing import Any

from .bcp import BCP
from .esp_medsam import ESPMedSAM
from .kdas import KDAS
from .knowsam import KnowSAM
from .mean_teacher import MeanTeacher
from .supervised import Supervised
from .unimatch import UniMatch

METHODS: dict[str, Any] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "unimatch": UniMatch,
    "bcp": BCP,
    "knowsam": KnowSAM,
    "kdas": KDAS,
    "esp_medsam": ESPMedSAM,
}
