"""Students by name: what an artefact needs to rebuild its network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..types import UserError
from .aggregation import knowsam_mean, knowsam_trio
from .esp_medsam import EspMedSam
from .polyp_pvt import polyp_pvt
from .unet import UNet
from .vnet import VNet

STUDENTS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "vnet": VNet,
    "knowsam_trio": knowsam_trio,
    "knowsam_mean": knowsam_mean,
    "polyp_pvt": polyp_pvt,
    "esp_medsam": EspMedSam,
}


class StudentSpec(NamedTuple):
    """A key of STUDENTS and the arguments of its constructor, JSON-serialisable."""

    name: str
    arguments: dict[str, Any]


PLAIN = tuple(name for name in STUDENTS if name != "esp_medsam")  # built of nothing but a number of classes


def require_plain(name: str, option: str) -> None:
    """UserError unless any method may train this network, before a run exists.

    That of ESP-MedSAM has weights per modality: one that its own method did not build knows no modality, and would be
    told those of the data.
    """
    if name not in PLAIN:
        known = "; ESP-MedSAM's is trained by --method esp_medsam" if name in STUDENTS else ""
        raise UserError(f"{option} {name}: choose one of {', '.join(PLAIN)}{known}")


def build_student(name: str, **arguments: Any) -> nn.Module:
    """Build a student and remember how; raises UserError for a name that does not exist."""
    if name not in STUDENTS:
        raise UserError(f"student {name!r} does not exist; choose one of {', '.join(STUDENTS)}")
    network = STUDENTS[name](**arguments)
    network.spec = StudentSpec(name, arguments)  # type: ignore[assignment]
    return network


def student_spec(network: nn.Module) -> StudentSpec:
    """How a network made by `build_student` was built."""
    spec = getattr(network, "spec", None)
    if not isinstance(spec, StudentSpec):
        raise TypeError(f"{type(network).__name__} was not made by build_student, so no artefact could rebuild it")
    return spec
