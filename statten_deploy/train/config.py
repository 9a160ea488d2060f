"""A training recipe: the ``model:`` and ``train:`` sections of a YAML file, and ``--set key=value`` on top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from statten_deploy.errors import ConfigError
from statten_deploy.models.config import ModelConfig, read_yaml
from statten_deploy.train.released import is_released, translate
from statten_deploy.untrusted.plain_yaml import parse_yaml
from statten_deploy.untrusted.text import shown

SECTIONS = ("model", "train")
Share = Annotated[float, Field(ge=0, le=1)]
TET_KEYS = {"tet_means", "tet_lambda"}
"""Keys that mean something for networks with `tet` only."""


class TrainConfig(BaseModel):
    """How a network is trained. Units: epochs, samples, pixels; learning rates per optimizer step.

    Learning rate: from `warmup_lr` to `lr` in a straight line over `warmup_epochs`, then a cosine down to `min_lr`, at
    which it stays for `cooldown_epochs`; `schedule` says when it changes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    optimizer: Literal["adamw", "lamb", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.06
    """Of matrices and kernels; biases and batch norms are not decayed."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of `sgd`, which looks ahead (Nesterov)."""
    betas: tuple[Share, Share] | None = None
    """Of `adamw` and `lamb`; None: (0.9, 0.999)."""
    eps: Annotated[float, Field(gt=0)] | None = None
    """Of `adamw` and `lamb`; None: 1e-8 and 1e-6."""
    epochs: Annotated[int, Field(ge=1)] = 200
    """All epochs, warm-up and cool-down among them."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["step", "epoch"] = "step"
    """step: a new rate every step, the cosine begins after the warm-up. epoch: a new rate every epoch, the cosine
    counts from the first epoch on (timm's, and that of the released recipes)."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    tet_means: float = 1.0
    """The constant that the TET loss pulls every step's logits to."""
    tet_lambda: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """The share of that pull in the TET loss."""
    random_shift: Annotated[int, Field(ge=0)] = 0
    """Every training sample is moved by up to so many pixels in x and y, zeros behind it."""
    random_rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Every training sample is turned by up to so many degrees either way."""
    random_scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Every training sample is enlarged or shrunk by up to this share of its size."""
    hflip: Share = 0.0
    """Probability that a sample, all its frames, is mirrored left to right."""
    vflip: Share = 0.0
    auto_augment: str = ""
    """Images: timm's name of a policy, such as rand-m9-n1-mstd0.4-inc1. Colour jitter is off where one is given."""
    color_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Images: brightness, contrast and saturation by a factor in 1 - c .. 1 + c."""
    crop_scale: tuple[Share, Share] | None = None
    """Images: a random part of so much of the area is cut out and resized; None: the whole, as it is evaluated."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Images: width / height of that part."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    """Images: how that part is resized, and how a policy turns and shears."""
    erase_prob: Share = 0.0
    """Images: probability that a random rectangle is erased."""
    erase_mode: Literal["const", "rand", "pixel"] = "const"
    """With the mean, with one random colour, or with noise."""
    erase_count: Annotated[int, Field(ge=1)] = 1
    event_augment: Literal["none", "nda", "wide"] = "none"
    """Frames. nda: rolled by up to 3 pixels, or turned or sheared by up to 15 degrees. wide: sheared, moved, turned or
    left alone."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """Frames: side of a square that is erased from all frames of a sample, in pixels."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup; 0: none."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of cutmix; 0: none."""
    mix_prob: Share = 1.0
    """Probability that a batch (pair, element) is mixed."""
    cutmix_share: Share = 0.5
    """Where both are on: probability of cutmix."""
    mix_mode: Literal["batch", "pair", "elem"] = "batch"
    mix_off_epoch: Annotated[int, Field(ge=0)] = 0
    """No mixing from this epoch on; 0: always."""
    repeats: Annotated[int, Field(ge=1)] = 1
    """Augmented forms of a sample that follow each other in an epoch, which stays as long: others wait for the next."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the moving average of the weights, which is then what is evaluated and kept; 0: no average."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Share of the training split held out to choose the best epoch; 0: train on all of it, keep the last epoch."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch. A fixed number makes runs repeat exactly on one machine; None: torch decides."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that decode and augment samples; their number changes nothing but the speed."""

    # How it runs, on which machines.
    precision: Annotated[Literal["32", "bf16", "16"], BeforeValidator(str)] = "32"
    """bf16, 16: mixed precision, convolutions and products in 16 bits, membranes and weights in 32. 16 needs CUDA."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches whose gradients are added up to one optimizer step."""
    gradient_clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient of an optimizer step; 0: not clipped."""
    devices: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Processes per node, one per GPU; `batch_size` is that of each. None: what torchrun or SLURM started, else 1."""
    nodes: Annotated[int, Field(ge=1)] | None = None
    """Machines. None: what torchrun or SLURM started, else 1."""
    sync_batchnorm: bool = True
    """Batch norms see the batches of all processes; false: each its own, and those of the first process are kept."""
    compile: bool = False
    """Compile the parts of the network (minutes at the start); where that does not work, one warning says so."""
    checkpoint_activations: bool = False
    """Keep the inputs of the parts only and run them again in the backward pass: less memory, more time."""
    save_every_steps: Annotated[int, Field(ge=0)] = 0
    """Write last.ckpt after every so many optimizer steps too, not only after epochs; 0: after epochs."""
    loggers: tuple[Literal["tensorboard", "csv", "wandb", "mlflow"], ...] = ("tensorboard", "csv")


@dataclass(frozen=True)
class Recipe:
    """What to train and how."""

    model: ModelConfig
    train: TrainConfig
    source: str
    data: str = ""
    """Where a released recipe says that its data are; empty: where the model's data set is (`split_root`)."""
    notes: tuple[str, ...] = ()
    """What was in the file and is not used."""


def read_recipe(path: Path, overrides: Sequence[str] = (), epochs: int | None = None) -> Recipe:
    """Read a recipe and apply ``key=value`` overrides, then `epochs`.

    A key is ``model.depth``, ``train.lr``, or the bare name where only one section knows it. A released recipe, flat
    and in timm's words, is translated first (`statten_deploy.train.released`).

    Raises:
        ConfigError: unreadable file, unknown section or key, or a value that does not fit.
    """
    document = read_yaml(path)
    released = translate(path, document) if is_released(document) else None
    sections = _sections(path, document) if released is None else {"model": released.model, "train": released.train}
    for override in overrides:
        section, key, value = parse_override(override)
        sections[section][key] = value
    if epochs is not None:
        sections["train"]["epochs"] = epochs
    model = ModelConfig.create(sections["model"], f"{path}: model")
    train = _train_config(sections["train"], f"{path}: train")
    if not model.tet:
        ignored = sorted(TET_KEYS & train.model_fields_set)
        if ignored:
            raise ConfigError(f"{path}: train.{ignored[0]} has no effect without model.tet: true; remove it or set tet")
    if released is None:
        return Recipe(model, train, str(path))
    return Recipe(model, train, str(path), released.data, released.notes)


def _sections(path: Path, document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    unknown = [key for key in document if key not in SECTIONS]
    missing = [name for name in SECTIONS if not isinstance(document.get(name), Mapping)]
    if missing or unknown:
        found = f"; unknown: {', '.join(unknown[:5])}" if unknown else ""
        raise ConfigError(
            f"{path}: a recipe has the sections model: and train: and nothing else"
            f" (missing: {', '.join(missing) or 'none'}{found}); models/configs/digits.yaml is an example"
        )
    return {name: dict(document[name]) for name in SECTIONS}


def parse_override(text: str) -> tuple[str, str, Any]:
    """Split ``train.lr=1e-3`` into ("train", "lr", value). The value is YAML; text fields take it as it stands.

    Raises:
        ConfigError: no ``=``, an unknown section or key, or a name that both sections know.
    """
    name, equals, raw = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: expected key=value, such as train.lr=0.001 or model.depth=1")
    fields: dict[str, Mapping[str, FieldInfo]] = {"model": ModelConfig.model_fields, "train": TrainConfig.model_fields}
    section, dot, key = name.strip().rpartition(".")
    candidates = [section] if dot else [known for known in SECTIONS if key in fields[known]]
    if len(candidates) != 1 or candidates[0] not in fields or key not in fields[candidates[0]]:
        known = "; ".join(f"{each}: {', '.join(fields[each])}" for each in SECTIONS)
        raise ConfigError(f"--set {text}: unknown key {name.strip()!r}; known keys: {known}")
    section = candidates[0]
    # "0011" is a name of a pooling layout, not a number.
    return section, key, raw if fields[section][key].annotation is str else _yaml_value(text, raw)


def _yaml_value(text: str, raw: str) -> Any:
    try:
        return parse_yaml(raw)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: {raw!r} is not a YAML value") from None


def _train_config(values: Mapping[str, Any], source: str) -> TrainConfig:
    try:
        return TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_explain(item) for item in error.errors())}") from None


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {shown(where)}; known keys: {', '.join(TrainConfig.model_fields)}"
    return f"{where}: {item['msg']} (found {shown(item['input'])})"
