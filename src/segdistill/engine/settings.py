"""What a run may choose about the loop, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Settings of the training loop.

    Attributes:
        seed: Seed of everything random.
        device: Where to train; "auto" takes a GPU if there is one.
        devices: Processes on this host, on CUDA one per GPU. Batch sizes are per process: an update sees
            batch x accumulate x devices x nodes images.
        nodes: Hosts; above 1, torchrun or srun starts the processes.
        precision: "auto" takes the faster one, measured on this machine at the start of the run.
        accumulate: Batches per update.
        flips: How training images are mirrored at random, each way with probability .5: "horizontal" swaps left and
            right. Where only its side tells a class from another: "vertical" or "none".
        compile: Compile the step with torch.compile.
        iterations: Updates over all stages; each stage keeps its share. None: as the method says.
        epochs: The same as passes over the training rows of the last stage's kind.
        validate_every: Updates between validations, each with a checkpoint. None: twenty in a stage.
        patience: Stop a stage after this many validations without a better one.
        precise_bn: Measure batch norm's statistics on training images before each validation, instead of the moving
            averages (PreciseBN).
        tensorboard: Write TensorBoard event files too.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["auto", "32", "bf16"] = "auto"
    accumulate: int = 1
    flips: Literal["both", "horizontal", "vertical", "none"] = "both"
    compile: bool = False
    iterations: int | None = None
    epochs: float | None = None
    validate_every: int | None = None
    patience: int | None = None
    precise_bn: bool = True  # published: false, in all methods
    tensorboard: bool = False
