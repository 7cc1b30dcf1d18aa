"""Predict with a student: from its folder by torch, from an ONNX or OpenVINO file without importing torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..formats import MAX_PIXELS, padded_shape
from ..types import UserError
from .card import Card, parse_card
from .labels import postprocess
from .side_by_side import MOST, ON_GPU, shares

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from .student import Student

BATCH = "images"  # the free dimension of an exported graph
SMALLER = "predict it in tiles (--tile true), or crop it"  # what helps where memory is short
LARGE = 4_000_000  # pixels of an image; what smaller ones take is kept for the next


class Prediction(NamedTuple):
    """One image's result, at the size of that image."""

    labels: NDArray[np.uint8]  # (H, W) class index
    probabilities: NDArray[np.float32]  # (C, H, W)
    routing: NDArray[np.float32] | None = None  # (M,) of the modalities; None where the student treats them alike


class Predictor(Protocol):
    """What predicts, whatever computes it."""

    card: Card
    routes: bool  # whether each modality has weights of its own, and a classifier tells them apart
    workers: int  # how many threads may predict at once
    identity: str  # equal for equal students, of `identity_of`

    def predict(self, image: NDArray[np.uint8], modality: int | None = None) -> Prediction:
        """RGB (H, W, 3) -> labels after post-processing, probabilities; `modality` indexes the card's, None: found."""
        found = self.raw(image, modality)
        return found._replace(labels=postprocess(found.labels, self.card))

    def raw(self, image: NDArray[np.uint8], modality: int | None = None) -> Prediction:
        """Before post-processing: what an exported file must reproduce."""
        ...

    def route(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probability of each modality (M,), of a student that routes."""
        ...


def open_predictor(path: Path, device: str = "cpu", threads: int | None = None, *, images: int = 1) -> Predictor:
    """The predictor of a student's folder or an exported file, .onnx or .xml (OpenVINO).

    Args:
        path: The folder, or the file.
        device: cpu or cuda.
        threads: Limits its threads; None: as many as there are cores.
        images: How many are to come: of several, as many threads may predict at once as the predictor has `workers`,
            each with its share of the cores.

    Raises:
        UserError: a path that is neither, a damaged student, a device that is not there, or no thread.
    """
    require_threads(threads)
    if path.suffix.lower() == ".onnx" and path.is_file():
        return OnnxPredictor(path, device, threads, images=images)
    if path.suffix.lower() == ".xml" and path.is_file():
        from .openvino_file import OpenVinoPredictor

        return OpenVinoPredictor(path, device, threads, images=images)
    if not path.is_dir():
        problem = "is not a student" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; give a student's folder or a file of `segdistill export`")
    import torch

    from .artefact import CARD, load_student

    student = load_student(path, device)
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchPredictor(student, identity_of(path / CARD))


def require_threads(threads: int | None) -> None:
    """UserError for less than one."""
    if threads is not None and threads < 1:
        raise UserError(f"--threads {threads}: needed 1 or more; leave it out for as many as there are cores")


def identity_of(path: Path) -> str:
    """16 hexadecimal digits of the file that holds all of a student, or (card, .xml) names its weights by their hash.

    Raises:
        UserError: it cannot be read any more.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); copy it again") from error


class TorchPredictor(Predictor):
    """Runs a Student where its weights are."""

    def __init__(self, student: Student, identity: str = "") -> None:
        import torch

        self.card, self.identity = student.card, identity
        self.student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.routes = student.routes
        self.device = next(student.parameters()).device
        # torch has one number of threads for all: on a CPU two images at once would fight for the cores
        self.workers = 1 if self.device.type == "cpu" else ON_GPU

    def raw(self, image: NDArray[np.uint8], modality: int | None = None) -> Prediction:
        """As in Predictor."""
        import torch

        told = None if modality is None else torch.tensor([modality], device=self.device)
        with torch.inference_mode(), computing(self.card.name, image, SMALLER):
            run = self.student.routed if self.routes else self.student
            return Prediction(*(part.cpu().numpy() for part in run(self._tensor(image), told)))

    def route(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As in Predictor."""
        import torch

        with torch.inference_mode(), computing(self.card.name, image, SMALLER):
            found: NDArray[np.float32] = self.student.route(self._tensor(image)).cpu().numpy()
        return found

    def _tensor(self, image: NDArray[np.uint8]) -> Tensor:
        import torch

        require_paddable(image, self.card)
        return torch.tensor(np.ascontiguousarray(image), device=self.device)


class OnnxPredictor(Predictor):
    """Runs a file of `export_onnx`; the card travels in the file."""

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None, *, images: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path} needs onnxruntime; install it with: pip install segdistill[onnx]") from None
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.split(":")[0])
        if provider not in onnxruntime.get_available_providers():
            raise UserError(f"device {device!r} cannot be used: this onnxruntime has no {provider or 'such'}; use cpu")
        self.path, self.provider, self.identity = path, provider, identity_of(path)
        self.workers, self.threads = shares(threads, images, MOST if provider == "CPUExecutionProvider" else ON_GPU)
        self.session = self._start(arena=True)
        self.frugal: InferenceSession | None = None
        self.starting = Lock()
        self.first_layers = onnxruntime.RunOptions()
        self.first_layers.only_execute_path_to_fetches = True
        try:
            entries = self.session.get_modelmeta().custom_metadata_map
            takes = {one.name: one.shape for one in self.session.get_inputs()}
            gives = {one.name for one in self.session.get_outputs()}
        except UnicodeDecodeError:
            raise UserError(f"{path} holds names that are no text; copy or export it again") from None
        if "card" not in entries:
            raise UserError(f"{path} does not say what it predicts; use a file of `segdistill export`")
        if "image" not in takes or not {"labels", "probabilities"} <= gives:
            raise UserError(f"{path} does not take an image and give labels; use a file of `segdistill export`")
        if len(takes["image"]) != 4:
            raise UserError(f"{path} takes no batch of images: an earlier version wrote it; export it again")
        self.card, _ = parse_card(entries["card"], f"the card in {path}")
        self.routes = "routing" in gives

    def raw(self, image: NDArray[np.uint8], modality: int | None = None) -> Prediction:
        """The graph's own outputs."""
        given = {"image": self._array(image)}
        if self.routes and modality is not None:
            given["modality"] = np.array([modality])
        with computing(self.path.name, image):
            found = self._for(image).run(["labels", "probabilities", *["routing"] * self.routes], given)
            result = Prediction(*(part[0] for part in found))
        return fitting(result, image, self.card, self.path)

    def route(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As in Predictor."""
        given = {"image": self._array(image)}
        with computing(self.path.name, image):
            found: NDArray[np.float32] = self.session.run(["routing"], given, self.first_layers)[0][0]
        return found

    def _for(self, image: NDArray[np.uint8]) -> InferenceSession:
        """Of a large image onnxruntime's arena would keep the memory for good; without it, others take 15 % longer."""
        if image.shape[0] * image.shape[1] <= LARGE:
            return self.session
        with self.starting:
            self.frugal = self.frugal or self._start(arena=False)
        return self.frugal

    def _start(self, arena: bool) -> InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about its own optimisations
        options.enable_cpu_mem_arena = arena
        options.add_free_dimension_override_by_name(BATCH, 1)  # known shapes inside the network
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            session = onnxruntime.InferenceSession(str(self.path), options, providers=[self.provider])
        except Exception as error:  # onnxruntime's own errors share no narrower base
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path} cannot be loaded ({reason}); export it again") from None
        if self.provider not in session.get_providers():  # onnxruntime only logs that it went on without
            raise UserError(f"onnxruntime has {self.provider} but cannot start it on this machine; use --device cpu")
        return session

    def _array(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        require_paddable(image, self.card)
        return np.ascontiguousarray(image)[None]


@contextmanager
def computing(name: str, image: NDArray[np.uint8], way_out: str = "export it again") -> Iterator[None]:
    """What an engine raises becomes one `UserError`; only the file's name is in it, as serve shows it to others."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the engines' own errors share no narrower base
        size, reason = f"{image.shape[1]}x{image.shape[0]}", " ".join(str(error).split())[:200]
        raise UserError(f"{name} cannot predict an image of {size} ({reason}); {way_out}") from error


def fitting(found: Prediction, image: NDArray[np.uint8], card: Card, path: Path) -> Prediction:
    """The result, if it is one of this image and card; else UserError: the file was changed, or is somebody else's."""
    shape, classes = image.shape[:2], len(card.classes)
    right = found.labels.dtype == np.uint8 and found.labels.shape == shape and found.labels.max(initial=0) < classes
    if not right or found.probabilities.shape != (classes, *shape):
        raise UserError(f"{path.name} gives something else than its card says; copy or export it again")
    return found


def require_paddable(image: NDArray[np.uint8], card: Card, most: int = MAX_PIXELS) -> None:
    """Refuse the strip of an image that padding to the aspect ratio would turn into more than `most` pixels."""
    height, width = image.shape[:2]
    if card.fit == "pad" and math.prod(padded_shape(height, width, card.size)) > most:
        raise UserError(
            f"an image of {width}x{height} pixels is too long to pad (to at most {most:,} pixels); crop it "
            "or predict it in tiles"
        )
