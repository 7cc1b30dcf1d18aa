"""segdistill: a large promptable segmentation model and a handful of masks in; a small, prompt-free segmenter out.

    import segdistill
    run = segdistill.train("data", "runs/first", segdistill.TrainOptions(labelled="60", size=128))
    segdistill.predict(run.folder, ["images"], "masks")

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.check import check
    from .api.compare import compare
    from .api.convert import convert
    from .api.evaluate import evaluate
    from .api.export import export, load_student
    from .api.extend import extend
    from .api.options import TrainOptions
    from .api.serve import serve
    from .api.train import resume, train
    from .api.use import predict
    from .types import UserError

_HOME = {
    "TrainOptions": "api.options",
    "UserError": "types",
    "check": "api.check",
    "compare": "api.compare",
    "convert": "api.convert",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "extend": "api.extend",
    "load_student": "api.export",
    "predict": "api.use",
    "resume": "api.train",
    "serve": "api.serve",
    "train": "api.train",
}
__all__ = [
    "TrainOptions",
    "UserError",
    "check",
    "compare",
    "convert",
    "evaluate",
    "export",
    "extend",
    "load_student",
    "predict",
    "resume",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
