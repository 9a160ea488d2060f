"""The released recipes: one flat YAML file in the words of timm's training script, as STAtten and SDT publish them.

Source: ``conf/`` and the argument parser of the released training code. Values that are not in a file are that
parser's defaults. What the released code accepts and never uses is accepted here too; what would train differently
from what is asked for is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statten_deploy.errors import ConfigError
from statten_deploy.models.config import EVENT_DATASETS, RELEASED_KEYS, RELEASED_ONLY, config_values
from statten_deploy.train.data import split_root

FIELDS: dict[str, str] = {
    "opt": "optimizer",
    "lr": "lr",
    "min_lr": "min_lr",
    "warmup_lr": "warmup_lr",
    "weight_decay": "weight_decay",
    "momentum": "momentum",
    "opt_betas": "betas",
    "opt_eps": "eps",
    "clip_grad": "gradient_clip",
    "epochs": "epochs",
    "warmup_epochs": "warmup_epochs",
    "cooldown_epochs": "cooldown_epochs",
    "batch_size": "batch_size",
    "smoothing": "label_smoothing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "mixup_prob": "mix_prob",
    "mixup_switch_prob": "cutmix_share",
    "mixup_mode": "mix_mode",
    "mixup_off_epoch": "mix_off_epoch",
    "aug_repeats": "repeats",
    "hflip": "hflip",
    "seed": "seed",
    "workers": "workers",
}
"""Released keys that every recipe may have, and what each is called here."""

TET_FIELDS = {"TET_means": "tet_means", "TET_lamb": "tet_lambda"}

IMAGE_FIELDS: dict[str, str] = {
    "aa": "auto_augment",
    "color_jitter": "color_jitter",
    "scale": "crop_scale",
    "ratio": "crop_ratio",
    "train_interpolation": "interpolation",
    "vflip": "vflip",
    "reprob": "erase_prob",
    "remode": "erase_mode",
    "recount": "erase_count",
}
"""The same, for images: the released code does not give event data to timm's transforms."""

DEFAULTS: dict[str, Any] = {
    "opt": "sgd",
    "lr": 0.01,
    "min_lr": 1e-5,
    "warmup_lr": 1e-4,
    "weight_decay": 1e-4,
    "epochs": 200,
    "warmup_epochs": 3,
    "cooldown_epochs": 10,
    "batch_size": 32,
    "smoothing": 0.1,
    "sched": "step",
    "hflip": 0.5,
    "color_jitter": 0.4,
    "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3],
    "train_interpolation": "random",
    "seed": 42,
    "workers": 4,
    "TET_means": 1.0,
    "TET_lamb": 0.0,
    "layer": 4,
    "num_classes": 1000,
    "pooling_stat": "1111",
    "time_steps": 4,
}
"""What the released argument parser assumes, where it differs from our own defaults."""

ONLY: dict[str, tuple[Any, ...]] = {
    "sched": ("cosine",),
    "bce_loss": (False,),
    "jsd": (False,),
    "aug_splits": (0,),
    "resplit": (False,),
    "split_bn": (False,),
    "cutmix_minmax": (None,),
    "clip_mode": ("norm",),
    "drop": (0,),
    "drop_block": (None,),
    "drop_connect": (None,),
    "lr_noise": (None,),
    "lr_cycle_limit": (1,),
    "lr_cycle_mul": (1,),
    "epoch_repeats": (0,),
    "no_aug": (False,),
    "linear_prob": (False,),
    "pretrained": (False,),
    "train_split_path": (None,),
    "start_epoch": (None,),
    "bn_tf": (False,),
    "bn_momentum": (None,),
    "bn_eps": (None,),
    "gp": (None,),
    "tta": (0,),
}
"""Keys that would change the training in a way that is not supported, and the values with which they do not."""

# fmt: off
IDLE = frozenset({
    "model", "data_dir", "val_batch_size", "crop_pct", "interpolation", "input_size", "use_conv_as_linear",
    "patch_size", "drop_path", "bce_target_thresh", "train_split", "val_split", "initial_checkpoint", "resume",
    "no_resume_opt", "output", "experiment", "eval_metric", "log_interval", "log_wandb", "recovery_interval",
    "checkpoint_hist", "save_images", "pin_mem", "no_prefetcher", "local_rank", "use_multi_epochs_loader",
    "torchscript", "decay_epochs", "decay_rate", "patience_epochs", "lr_noise_pct", "lr_noise_std", "dist_bn",
    "sync_bn", "channels_last", "apex_amp", "native_amp", "model_ema", "model_ema_decay", "model_ema_force_cpu",
    "amp", "dvs_aug", "dvs_trival_aug", "attn_mode",
})
# fmt: on
"""Keys that say where files are, how to log, or on what to run, and those that are translated one by one below."""

HYPHENATED = frozenset({"model-ema", "model-ema-decay", "channels-last", "bce-loss", "bce-target-thresh"})
"""Spellings that the released parser never looks at."""

REQUIRED = ("dim", "img_size", "dataset")
CUTOUT = 16
"""Pixels: the square of the released ``dvs_aug``."""


@dataclass(frozen=True)
class Released:
    """A released recipe in our words."""

    model: dict[str, Any]
    train: dict[str, Any]
    data: str
    notes: tuple[str, ...]


def is_released(document: Mapping[str, Any]) -> bool:
    """Whether a YAML document is one of theirs: flat, with keys that only they use."""
    return not isinstance(document.get("model"), Mapping) and bool(RELEASED_ONLY & document.keys())


def translate(path: Path, document: Mapping[str, Any]) -> Released:
    """A released document as the two sections of ours.

    Raises:
        ConfigError: a key is missing, asks for what is not supported, or contradicts another.
    """
    missing = [key for key in REQUIRED if document.get(key) is None]
    if missing:
        raise ConfigError(f"{path}: a released recipe names {', '.join(REQUIRED)} (missing: {', '.join(missing)})")
    values = {**DEFAULTS, **{key: value for key, value in document.items() if value is not None}}
    problems = [
        f"{key}: {values[key]!r} is not supported, {' or '.join(map(repr, allowed))} is"
        for key, allowed in ONLY.items()
        if key in values and values[key] not in allowed
    ]
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")
    name, _ = split_root(str(values["dataset"]))
    if "T" in document and "time_steps" not in document:
        values["time_steps"] = document["T"]
    notes = _notes(document)
    if "chunk_size" not in document and "attention_mode" not in document:  # files of the baseline's repository
        values["attention_mode"] = "SDT"
        notes += ("no chunk_size and no attention_mode: taken for the Spike-driven Transformer (attention: SDT)",)
    model = config_values({**values, "dataset": name})
    model.setdefault("name", f"{name}-{path.stem}")
    return Released(model, _train(values, name, bool(model.get("tet"))), _data(values, name), notes)


def _train(values: Mapping[str, Any], dataset: str, tet: bool) -> dict[str, Any]:
    events = any(word in dataset for word in EVENT_DATASETS)
    fields = {**FIELDS, **(TET_FIELDS if tet else {}), **({} if events else IMAGE_FIELDS)}
    train = {name: values[key] for key, name in fields.items() if key in values}
    train["epochs"] += train["cooldown_epochs"]  # the released code trains these on top
    train["schedule"] = "epoch"
    train["validation"] = 0
    train["repeats"] = max(1, int(train.get("repeats", 1)))
    if values.get("amp"):
        train["precision"] = "16"
    if values.get("model_ema"):
        train["ema_decay"] = values.get("model_ema_decay", 0.9998)
    if events:
        train["cutout"] = CUTOUT if values.get("dvs_aug") else 0
        train["event_augment"] = "wide" if values.get("dvs_trival_aug") else NDA.get(dataset, "none")
    return train


NDA = {"ncaltech101": "nda"}
"""Data sets that the released code augments itself, whatever the file says."""


def _data(values: Mapping[str, Any], name: str) -> str:
    """The file's own ``data_dir`` where there is such a folder; else it lies where named data sets do."""
    folder = values.get("data_dir")
    return f"{name}:{folder}" if folder and Path(folder).is_dir() else name


def _notes(document: Mapping[str, Any]) -> tuple[str, ...]:
    known = {*FIELDS, *TET_FIELDS, *IMAGE_FIELDS, *DEFAULTS, *ONLY, *IDLE, *RELEASED_KEYS}
    notes = []
    unread = sorted(HYPHENATED & document.keys())
    told = [key for key in unread if document[key] and document[key] != document.get(key.replace("-", "_"))]
    told = [key for key in told if key not in ("model-ema-decay", "bce-target-thresh")]
    if told:
        notes.append(f"{', '.join(told)}: not used, the released code does not read this spelling")
    unknown = sorted(document.keys() - known - HYPHENATED)
    if unknown:
        notes.append(f"{', '.join(unknown)}: not used, no key of a released recipe")
    return tuple(notes)
