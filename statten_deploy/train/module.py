"""The network under training."""

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from statten_deploy import __version__
from statten_deploy.errors import ConfigError
from statten_deploy.models.checkpoint import QUANTISATION_KEY, Quantisation
from statten_deploy.models.config import ModelConfig
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions
from statten_deploy.train.augment import random_shift, random_turn
from statten_deploy.train.config import TrainConfig
from statten_deploy.train.losses import mean_loss, tet_loss
from statten_deploy.train.mixing import Mixer
from statten_deploy.train.optimizers import build_optimizer
from statten_deploy.train.parts import Parts, can_compile
from statten_deploy.train.resume import LAST, PROCESSES_KEY
from statten_deploy.train.schedule import learning_rate
from statten_deploy.train.straight_through import StraightThroughNetwork

Batch = tuple[Tensor, Tensor]
MODEL, AVERAGE = "model.", "average."
TRAINED_KEY = "statten_trained"


class StattenModule(L.LightningModule):
    """STAtten with its loss, optimizer and metrics. Batches are x [B, ...] and classes [B].

    With `quantisation` it is the integer network that is trained and validated; batch norms keep their statistics.
    `start` is a network to start from, of the same configuration.
    """

    def __init__(
        self,
        model: ModelConfig,
        train: TrainConfig,
        quantisation: Quantisation | None = None,
        start: STAtten | None = None,
    ) -> None:
        super().__init__()
        self.model = STAtten(model)
        if start is not None:
            self.model.load_state_dict(start.state_dict())
        self.average = copy.deepcopy(self.model).requires_grad_(False) if train.ema_decay else None
        self.train_config = train
        self.parts: Parts | None = None
        self.mixer = Mixer(train, model.num_classes) if train.mixup or train.cutmix else None
        self.quantisation = quantisation
        self._integers: StraightThroughNetwork | None = None
        self.train_accuracy = MulticlassAccuracy(model.num_classes, average="micro")
        self.validation_accuracy = MulticlassAccuracy(model.num_classes, average="micro")

    @property
    def kept(self) -> STAtten:
        """The network that is validated and written: the moving average where there is one."""
        return self.model if self.average is None else self.average

    def forward(self, x: Tensor) -> Tensor:
        return self._steps(self.kept, x).mean(0)

    def _steps(self, network: STAtten, x: Tensor, parts: Parts | None = None) -> Tensor:
        """Logits of every step, [T, B, classes], of the network or of its integer form."""
        integers = self._quantised(network)
        return network.forward_steps(x, parts) if integers is None else integers.forward_steps(x)

    def setup(self, stage: str) -> None:
        """Compile and checkpoint as the configuration says; integers run as they are."""
        config = self.train_config
        device = self.trainer.strategy.root_device  # the module is not there yet
        compiled = config.compile and self.quantisation is None and can_compile(device)
        self.parts = Parts(compiled=compiled, checkpointed=config.checkpoint_activations)
        if compiled or device.type == "cuda":
            self.model.to(memory_format=torch.channels_last)

    def _quantised(self, network: STAtten) -> StraightThroughNetwork | None:
        """The integer form of the network as its weights are now."""
        options = self.quantisation
        return None if options is None else StraightThroughNetwork(network, QuantizeOptions(**options))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """TET where the model configuration says so, else cross-entropy of the mean logits [T, B, classes].

        target: classes [B], or shares [B, classes] of mixed samples, which are smoothed already.
        """
        config = self.train_config
        smoothing = config.label_smoothing if target.dim() == 1 else 0.0
        if self.model.config.tet:
            return tet_loss(logits, target, config.tet_means, config.tet_lambda, smoothing)
        return mean_loss(logits, target, smoothing)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, target = batch
        x, shares = self._mix(self._augment(x, batch_idx), target, batch_idx)
        logits = self._steps(self.model, x, self.parts)
        loss = self.loss(logits, target if shares is None else shares)
        self.train_accuracy(logits.mean(0), target)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(target), sync_dist=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:  # before a checkpoint of this step is written
            with self.trainer.profiler.profile("moving average"):  # type: ignore[attr-defined]
                update_average(self.average, self.model, self.train_config.ema_decay, self.global_step + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """In float32 whatever the precision: as the network will be exported and run."""
        with torch.autocast(self.device.type, enabled=False):
            self._validate(batch, batch_idx)

    def _validate(self, batch: Batch, batch_idx: int) -> None:
        x, target = batch
        if batch_idx == 0:  # the weights stand still while they are validated
            self._integers = self._quantised(self.kept)
        logits = self.kept.forward_steps(x) if self._integers is None else self._integers.forward_steps(x)
        self.validation_accuracy(logits.mean(0), target)
        self.log("validation/loss", self.loss(logits, target), batch_size=len(target), sync_dist=True)
        self.log("validation/accuracy", self.validation_accuracy, prog_bar=True)

    def _augment(self, x: Tensor, batch_idx: int) -> Tensor:
        config = self.train_config
        generator = torch.Generator().manual_seed(self._batch_seed(batch_idx))
        x = random_turn(x, config.random_rotation, config.random_scale, generator)
        return random_shift(x, config.random_shift, generator)

    def _mix(self, x: Tensor, target: Tensor, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        """Mixed samples with their shares [B, classes], or x and None where nothing is mixed."""
        off = self.train_config.mix_off_epoch
        if self.mixer is None or (off and self.current_epoch >= off):
            return x, None
        return self.mixer(x, target, self._batch_seed(batch_idx))

    def _batch_seed(self, batch_idx: int) -> int:
        """A function of seed, epoch, batch and process, not of what ran before: resuming changes nothing."""
        batch = batch_idx * self.trainer.world_size + self.global_rank
        return ((self.train_config.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch) % 2**63

    def configure_optimizers(self) -> Any:
        config = self.train_config
        optimizer = build_optimizer(self.model, config)
        steps_per_epoch = int(self.trainer.estimated_stepping_batches) // config.epochs
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, steps_per_epoch, config) / config.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["statten_config"] = self.model.config.model_dump(mode="json")
        checkpoint["statten_train"] = self.train_config.model_dump(mode="json")
        checkpoint["statten_deploy_version"] = __version__
        if "optimizer_states" in checkpoint:
            checkpoint[PROCESSES_KEY] = self.trainer.world_size
        if self.quantisation is not None:
            checkpoint[QUANTISATION_KEY] = dict(self.quantisation)
        if self.average is None:
            return
        # Under "model." is what is kept, in every checkpoint; the weights being trained have a key of their own.
        state = checkpoint["state_dict"]
        trained = {key: state.pop(key) for key in list(state) if key.startswith(MODEL)}
        state.update({MODEL + key.removeprefix(AVERAGE): state.pop(key) for key in list(state)})
        if "optimizer_states" in checkpoint:
            checkpoint[TRAINED_KEY] = trained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained, here = checkpoint.get(PROCESSES_KEY, 1), self.trainer.world_size
        if trained != here:
            raise ConfigError(
                f"{LAST}: was trained by {trained} processes, this run has {here}; continue it with as many "
                "(--devices times --nodes)"
            )
        if self.average is None:
            return
        state = checkpoint["state_dict"]
        state.update({AVERAGE + key.removeprefix(MODEL): state[key] for key in list(state)})
        state.update(checkpoint[TRAINED_KEY])


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """``average <- d · average + (1 - d) · model``, d = min(decay, (1 + step) / (10 + step)): batch norms included.

    The ramp of d forgets the random weights of the first steps.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for kept, current in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(current, 1 - decay)
        else:
            kept.copy_(current)
