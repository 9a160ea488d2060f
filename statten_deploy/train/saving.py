"""Checkpoints that a kill at any moment leaves whole: the old one or the new one, never a part."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from statten_deploy.train.resume import LAST


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, flushes to the disk, and renames."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the new name is on the disk too
        finally:
            os.close(directory)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt after every epoch and, if `every` is not 0, after every so many optimizer steps.

    Not after the last batch of an epoch, whose validation is still to come: a run continued from there would go
    without it.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path = folder / LAST
        self.every = every
        self.saved = 0  # optimizer steps at the last file

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A continued run has this step on the disk; written again in mid-accumulation it would lose gradients.
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        steps = trainer.global_step
        if self.every and steps > self.saved and steps % self.every == 0 and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self.saved = trainer.global_step
        trainer.save_checkpoint(self.path)
