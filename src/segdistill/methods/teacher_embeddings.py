"""The embeddings that ESP-MedSAM's student learns: the teacher's, computed in each step or looked up on disk."""

from __future__ import annotations

import shutil
from functools import partial

import torch
from torch import Tensor

from ..models.embedding_cache import EmbeddingCache, weights_key
from ..models.medical_sam import MedicalSam
from ..models.sam import PATCH
from ..models.tiny_vit import EMBEDDING, STRIDE
from ..types import Store, UserError


class TeacherEmbeddings:
    """Of a teacher that stands still; from the disk in a stage that was opened with a name.

    Args:
        teacher: Its weights are looked at when the first embedding is asked for.
        store: Where to keep embeddings; None: nothing can be opened.
        size: (H, W) of the training images.
    """

    def __init__(self, teacher: MedicalSam, store: Store | None, size: tuple[int, int]) -> None:
        self.teacher, self.store = teacher, store
        height, width = (-(-side // STRIDE) * STRIDE // PATCH for side in size)
        self.shape = (EMBEDDING, height, width)
        self.cache: EmbeddingCache | None = None

    def open(self, name: str) -> None:
        """Reserve the disk space of a stage and say how much it is; what earlier stages kept is removed."""
        if self.store is None:
            raise UserError("--esp_medsam.cached true needs a run's folder to keep embeddings in; start it with train")
        self.close(keep=name)
        self.cache = EmbeddingCache(self.store.folder / name, self.store.rows, self.shape)
        count = len(self.store.rows)
        self.store.say(f"{name}: the teacher's embeddings of {count:,} images take {self.cache.bytes / 1e9:.2f} GB")

    def close(self, keep: str = "") -> None:
        """Give the disk space back, also that of a run that was interrupted, but for the stage `keep`."""
        self.cache = None
        if self.store and self.store.folder.is_dir():
            for folder in self.store.folder.iterdir():
                if folder.name != keep:
                    shutil.rmtree(folder, ignore_errors=True)
            if not keep:
                shutil.rmtree(self.store.folder, ignore_errors=True)

    @torch.no_grad()
    def __call__(self, image: Tensor, modality: Tensor | None, index: Tensor) -> Tensor:
        """(B, 256, H/16, W/16) of images with sides divisible by 32, rows `index` of the manifest."""
        if self.cache is None:
            return self.teacher.encode(image, modality)
        if not self.cache.key:
            self.cache.use(weights_key(self.teacher.sam, self.teacher.controllers))
        return self.cache.look_up(index, partial(self._encode, image, modality))

    def _encode(self, image: Tensor, modality: Tensor | None, places: Tensor) -> Tensor:
        """In fp32 whatever the run's precision: the choice of precision must not leave coarser ones behind."""
        with torch.autocast(image.device.type, enabled=False):
            return self.teacher.encode(image[places].float(), None if modality is None else modality[places])
