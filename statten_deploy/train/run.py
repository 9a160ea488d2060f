"""One training run: data, trainer, loggers, checkpoints, and the final evaluation of the file that was written."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from statten_deploy.energy import EnergyEstimator
from statten_deploy.errors import ConfigError, InputError
from statten_deploy.frontend import build_graph
from statten_deploy.models.checkpoint import Quantisation, build_model, file_sha256, load_checkpoint, load_model
from statten_deploy.models.statten import STAtten
from statten_deploy.quantize import QuantizeOptions, quantize
from statten_deploy.train.config import TET_KEYS, Recipe, TrainConfig
from statten_deploy.train.datamodule import StattenData
from statten_deploy.train.distributed import BatchNormSync, layout
from statten_deploy.train.module import StattenModule
from statten_deploy.train.parts import seconds_compiling
from statten_deploy.train.profiling import FILE as PROFILE
from statten_deploy.train.profiling import TrainProfile, TrainProfiler
from statten_deploy.train.resume import LAST, START, check_resume
from statten_deploy.train.saving import AtomicCheckpointIO, LastCheckpoint
from statten_deploy.train.scoring import Accuracy, evaluate, evaluate_integers

log = logging.getLogger(__name__)

BEST = "best.ckpt"
"""Weights and configuration of the epoch with the lowest validation loss."""
FINAL = "final.ckpt"
"""Weights and configuration after the last epoch, where nothing was held out to choose a better one."""

LABELS = frozenset({"name", "dataset", "tet"})
"""Fields of a configuration in which a checkpoint to start from may differ: they change nothing that it computes."""

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}

QUIET = (
    r".*does not have many workers which may be a bottleneck.*",
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    r"Total length of `list` across ranks is zero.*",
    r".*GPU available but not used.*",
    r".*resuming from a checkpoint that ended before the epoch ended.*",  # the data module leaves out what was seen
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
"""Warnings of Lightning about choices made here on purpose."""


@dataclass(frozen=True)
class TrainResult:
    """What a run gave. Times in seconds of this call; accuracies are of the written checkpoint's weights.

    With `quantisation`, accuracy, firing rates and energy are those of its integer network. Energy is in pJ per sample
    by cost profile, counted on `energy_samples` of the test samples; where it cannot be, `energy_note` says why.
    """

    checkpoint: str
    sha256: str
    bytes: int
    last: str
    data: str
    parameters: int
    epochs: int
    seconds: float
    train_samples: int
    validation_samples: int
    selected_by: str
    test_samples: int
    test_correct: int
    test_accuracy: float
    test_top5_accuracy: float | None
    """None where there are no more than five classes."""
    firing_rates: dict[str, float]
    energy_pj: dict[str, float]
    energy_samples: int
    energy_note: str
    quantisation: Quantisation | None = None
    processes: int = 1
    seconds_compiling: float = 0.0
    profile: TrainProfile | None = None

    def to_dict(self) -> dict[str, Any]:
        """The object ``statten-train --json`` prints."""
        return asdict(self)


def train(
    recipe: Recipe,
    data: str | Path | None = None,
    out: Path | None = None,
    *,
    device: str = "auto",
    resume: Path | None = None,
    init: Path | None = None,
    qat_bits: int | None = None,
    progress: bool = False,
    profile: bool = False,
) -> TrainResult | None:
    """Train `recipe` and evaluate the checkpoint it gives on the test split.

    Of several processes all train; the first one alone writes, evaluates and returns a result, the others None.

    `data`: the name of a data set, a folder of images or an ``.npz`` file; default: the data set the model names.
    `out`: folder of the run; default ``runs/<model name>``, numbered if taken, or the folder of `resume`.
    `init`: a checkpoint of the same network whose weights to start from.
    `qat_bits`: train the network's integer form with weights of so many bits; needs `init` or `resume`.
    `profile`: watch where the time goes; also written to ``profile.txt`` in the folder.

    Raises:
        InputError: data, device, folder or checkpoint are not what they should be.
    """
    accelerator = _accelerator(device)
    chosen = data if data is not None else recipe.data or recipe.model.dataset
    if not str(chosen):
        raise InputError(f"{recipe.source}: names no data set (model.dataset); give one with --data")
    quantisation = _quantisation(qat_bits, init, resume)
    place = START if resume is None else check_resume(resume, recipe, quantisation)
    devices, nodes = layout(recipe.train)
    if accelerator == "cuda" and isinstance(devices, int) and devices > (count := torch.cuda.device_count()):
        raise InputError(
            f"--devices {devices}: one process per GPU, and torch finds {count} here; ask for as many, or auto"
        )
    start = None if init is None else load_model(init, recipe.model.model_dump(mode="json", exclude=set(LABELS)))
    first = not getattr(rank_zero_only, "rank", 0)
    # Others get the folder from the first one when they write, which they do not.
    folder = _folder(recipe, out, resume) if first else Path()
    with _threads(recipe.train.threads), _quiet(), _without_worker_traceback():
        batches = StattenData(chosen, recipe.model, recipe.train, place)
        loggers = _loggers(recipe, folder)
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            _write_recipe(folder / "recipe.yaml", recipe)
        started, compiling = time.perf_counter(), seconds_compiling()
        torch.manual_seed(recipe.train.seed)
        module = StattenModule(recipe.model, recipe.train, quantisation, start)
        selecting = batches.validation_samples is not None
        profiler = TrainProfiler(accelerator) if profile and first else None
        trainer = L.Trainer(
            accelerator=accelerator,
            strategy=_strategy(devices, nodes),
            devices=devices,
            num_nodes=nodes,
            precision=_precision(recipe.train, accelerator),
            plugins=[AtomicCheckpointIO(), *([BatchNormSync()] if recipe.train.sync_batchnorm else [])],
            max_epochs=recipe.train.epochs,
            accumulate_grad_batches=recipe.train.accumulate,
            gradient_clip_val=recipe.train.gradient_clip or None,
            use_distributed_sampler=False,  # the data module shares out its samples itself
            default_root_dir=folder,
            logger=loggers,
            callbacks=_callbacks(folder, selecting, progress, recipe.train.save_every_steps),
            profiler=profiler,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10,
        )
        checkpoint = _fit(trainer, module, batches, folder, resume)
        if not trainer.is_global_zero:
            return None
        seconds = time.perf_counter() - started
        model, score = _score(checkpoint, batches, accelerator)
    found = None if profiler is None else profiler.result()
    if found is not None:
        (folder / PROFILE).write_text(found.text() + "\n", encoding="utf-8")
    held = batches.validation_samples
    return TrainResult(
        checkpoint=str(checkpoint),
        sha256=file_sha256(checkpoint),
        bytes=checkpoint.stat().st_size,
        last=str(folder / LAST),
        data=str(chosen),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=recipe.train.epochs,
        seconds=round(seconds, 3),
        train_samples=len(batches.train_samples),
        validation_samples=0 if held is None else len(held),
        selected_by="last epoch" if held is None else "lowest validation loss",
        test_samples=score.samples,
        test_correct=score.correct,
        test_accuracy=score.accuracy,
        test_top5_accuracy=None if score.top5 is None else score.top5 / score.samples,
        firing_rates=score.firing_rates,
        energy_pj=score.energy.energy_pj,
        energy_samples=score.energy.samples,
        energy_note=score.energy.note,
        quantisation=quantisation,
        processes=trainer.world_size,
        seconds_compiling=round(seconds_compiling() - compiling, 3),
        profile=found,
    )


def _quantisation(bits: int | None, init: Path | None, resume: Path | None) -> Quantisation | None:
    if init is not None and resume is not None:
        raise InputError(f"--init {init}: a resumed run has its weights from {resume}; drop --init or --resume")
    if bits is None:
        return None
    if not 2 <= bits <= 8:
        raise InputError(f"--qat-bits {bits}: expected 2 to 8")
    if init is None and resume is None:
        raise InputError(
            f"--qat-bits {bits}: starts from a trained network; train the recipe without it first and give the "
            "checkpoint with --init"
        )
    return Quantisation(bits=bits, granularity="channel")


def _score(checkpoint: Path, batches: StattenData, accelerator: str) -> tuple[STAtten, Accuracy]:
    """The written file on the test split: in integers where it was trained for them."""
    written = load_checkpoint(checkpoint)
    model = build_model(written)
    graph, count = build_graph(model), len(batches.test_samples)
    if written.quantisation is None:
        return model, evaluate(model, batches.test_loader(), accelerator, EnergyEstimator(graph, count))
    graph = quantize(graph, QuantizeOptions(**written.quantisation))
    return model, evaluate_integers(graph, batches.test_loader(), accelerator, EnergyEstimator(graph, count))


def _accelerator(device: str) -> str:
    available = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device}: expected auto, cpu or cuda")
    if device == "cuda" and not available:
        raise InputError("--device cuda: torch finds no CUDA device here; use --device cpu or auto")
    return "cuda" if available and device != "cpu" else "cpu"


def _folder(recipe: Recipe, out: Path | None, resume: Path | None) -> Path:
    if resume is not None:
        if out is not None and out.resolve() != resume.parent.resolve():
            raise InputError(
                f"--out {out}: a resumed run continues in the folder of its checkpoint, {resume.parent}; drop --out"
            )
        return resume.parent
    if out is not None:
        if (out / LAST).exists():
            raise InputError(
                f"{out}: holds an earlier run; choose another --out, or continue it with --resume {out / LAST}"
            )
        return out
    base = Path("runs") / recipe.model.name
    number = 1
    folder = base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _write_recipe(path: Path, recipe: Recipe) -> None:
    idle = set() if recipe.model.tet else TET_KEYS
    train = recipe.train.model_dump(mode="json", exclude=idle)
    sections = {"model": recipe.model.model_dump(mode="json"), "train": train}
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")


def _precision(config: TrainConfig, accelerator: str) -> Any:
    """Lightning's name of it. A CPU has no float16 arithmetic; recipes that ask for it are meant for GPUs."""
    if config.precision == "16" and accelerator == "cpu":
        log.warning("train.precision 16: float16 needs a CUDA device; on this CPU it is bf16")
        return PRECISIONS["bf16"]
    return PRECISIONS[config.precision]


def _strategy(devices: int | str, nodes: int) -> str | Strategy:
    """One process as it is; several, and "auto", which may be several GPUs, as distributed data parallel ones."""
    if (devices, nodes) == (1, 1):
        return "auto"
    # Batch norms are synchronised at every step or kept apart on purpose: no broadcast of their statistics, for which
    # processes would wait that have no more samples to validate.
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def _loggers(recipe: Recipe, folder: Path) -> list[Logger]:
    """Those of `train.loggers`; all but the first process's write nothing."""
    name = recipe.model.name
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(folder, name="tensorboard"),
        "csv": lambda: CSVLogger(folder, name="csv"),
        "wandb": lambda: WandbLogger(project="statten-deploy", name=name, save_dir=folder),
        "mlflow": lambda: MLFlowLogger(
            experiment_name="statten-deploy", run_name=name, save_dir=str(folder / "mlflow")
        ),
    }
    made = []
    for logger in recipe.train.loggers:
        try:
            made.append(makers[logger]())
        except ModuleNotFoundError:
            raise ConfigError(
                f"train.loggers: {logger} is not installed; pip install {logger}, or leave it out"
            ) from None
    return made


def _fit(trainer: L.Trainer, module: StattenModule, batches: StattenData, folder: Path, resume: Path | None) -> Path:
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=resume, weights_only=True)
    except SystemExit:
        # Lightning answers Ctrl-C by leaving the process; callers decide that.
        raise KeyboardInterrupt from None
    if batches.validation_samples is not None:
        return folder / BEST
    trainer.save_checkpoint(folder / FINAL, weights_only=True)
    return folder / FINAL


def _callbacks(folder: Path, selecting: bool, progress: bool, save_every_steps: int) -> list[Callback]:
    best = ModelCheckpoint(
        folder,
        filename=BEST.removesuffix(".ckpt"),
        monitor="validation/loss",
        save_weights_only=True,
        enable_version_counter=False,
    )
    # `last` comes after `best`, so that its file knows the best score.
    last = LastCheckpoint(folder, save_every_steps)
    bars: list[Callback] = [RichProgressBar(console_kwargs={"stderr": True})] if progress else []
    return [*bars, LearningRateMonitor("epoch"), *([best] if selecting else []), last]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_worker_traceback() -> Iterator[None]:
    """An `InputError` of a data-loading process carries that process's traceback; users see its last line."""
    try:
        yield
    except InputError as error:
        last = str(error).strip().splitlines()[-1]
        raise type(error)(last.removeprefix(f"{InputError.__module__}.{type(error).__name__}: ")) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes about hardware and its advice; its other warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
