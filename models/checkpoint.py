"""Read a checkpoint of any known origin into (configuration, weights), never running code from the file.

What the weights tell (width, depth, channels, classes, MLP ratio, heads, PLIF) is inferred; what they cannot tell
(T, S, pooling, dvs mode, ...) comes from the checkpoint or from the caller; a contradiction is an error naming both.
"""

import argparse
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from statten_deploy.errors import CheckpointError, ConfigError
from statten_deploy.models.config import ModelConfig, config_values, hidden_width
from statten_deploy.models.statten import STAtten
from statten_deploy.untrusted.limits import check_bytes
from statten_deploy.untrusted.text import parse_json, shown
from statten_deploy.untrusted.torch_file import check_tensors, read_torch_file

CONFIG_KEY = "statten_config"
QUANTISATION_KEY = "statten_quantisation"
PREFIXES = ("module.", "model.", "_orig_mod.")
TORCH_SUFFIXES = (".ckpt", ".pth", ".pth.tar", ".pt", ".tar", ".bin")
SCALARS = (str, int, float, type(None))
MAX_ITEMS = 64
"""Values in a list of a stored configuration: the channels of an input."""
BLOCK = re.compile(r"^block\.(\d+)\.")


class Quantisation(TypedDict):
    """For which integers the weights were trained: bits 2..8, one scale per output channel or one per tensor."""

    bits: int
    granularity: Literal["channel", "tensor"]


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the configuration they belong to."""

    config: ModelConfig
    state_dict: dict[str, Tensor]
    sha256: str
    path: Path
    origin: str
    """statten-train, released or bare: where the configuration came from."""
    quantisation: Quantisation | None = None
    """Set by quantisation-aware training: what is deployed is the network quantised so, without calibration."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None, *, also: str = "") -> Checkpoint:
    """Read a checkpoint.

    `overrides` are model fields from ``--config``: they fill in what the file does not say. `also`: what else the
    caller would read, for its messages.

    Raises:
        CheckpointError: unreadable, holds something else than a network's weights, or weights do not fit.
        ConfigError: the configuration is incomplete, or contradicts the weights or the file.
    """
    path = Path(path)
    raw = _read(path, f"a checkpoint (.ckpt, .pth, .pth.tar, .pt, .safetensors){also}")
    state = _clean_state(path, _find_state(path, raw))
    inferred = _infer(path, state)
    stored, origin = _stored_config(path, raw)
    given = dict(overrides or {})
    values = {**stored, **given}
    hidden = inferred["mlp_ratio"] * inferred["embed_dim"]
    for told in (given, stored):  # any ratio that gives the width of the weights is the right one
        ratio = _number(told.get("mlp_ratio"))
        if ratio is not None and hidden_width(inferred["embed_dim"], ratio) == round(hidden):
            inferred["mlp_ratio"] = told["mlp_ratio"]
    _refuse_contradictions(path, given, stored, inferred)
    missing = _missing(values)
    if missing:
        hint = " (or attention_mode: SDT, if that is what it is)" if "chunk_size" in missing else ""
        raise ConfigError(
            f"{path}: neither the file nor its weights tell {', '.join(missing)}; "
            f"give them in a YAML file with --config{hint}"
        )
    values = {**values, **inferred}
    values.setdefault("name", path.name.split(".")[0])
    config = ModelConfig.create(values, str(path))
    _check_fit(path, config, state)
    return Checkpoint(config, state, file_sha256(path), path, origin, _stored_quantisation(path, raw))


def load_model(path: str | Path, overrides: Mapping[str, Any] | None = None) -> STAtten:
    """The network of a checkpoint, in evaluation mode. Raises as `load_checkpoint`."""
    checkpoint = load_checkpoint(path, overrides)
    return build_model(checkpoint)


def build_model(checkpoint: Checkpoint) -> STAtten:
    """The network of an already loaded checkpoint, in evaluation mode; its weights are the checkpoint's own tensors."""
    with torch.device("meta"):
        model = STAtten(checkpoint.config)
    model.load_state_dict(checkpoint.state_dict, strict=True, assign=True)
    _restore_buffers(model, checkpoint.config)
    return model.eval()


def _restore_buffers(model: STAtten, config: ModelConfig) -> None:
    """Non-persistent buffers are not in the state dict."""
    for name, values in (("mean", config.mean), ("std", config.std)):
        setattr(model, name, torch.tensor(values or (), dtype=torch.float32).view(-1, 1, 1))


def _read(path: Path, expected: str) -> Mapping[str, Any]:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise CheckpointError(f"{path}: {found}; expected {expected}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not path.name.endswith(TORCH_SUFFIXES):
        raise CheckpointError(f"{path}: unknown type {path.suffix!r}; expected {expected}")
    return read_torch_file(path)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import safe_open

    check_bytes(path, path.stat().st_size)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
    except Exception as error:  # the library has its own exception types per release
        raise CheckpointError(f"{path}: cannot be read as safetensors ({' '.join(str(error).split())[:160]})") from None
    raw: dict[str, Any] = {"state_dict": tensors}
    for key in metadata.keys() & {CONFIG_KEY, QUANTISATION_KEY}:
        try:
            raw[key] = parse_json(metadata[key])
        except ValueError:
            raise CheckpointError(f"{path}: metadata key {key!r} is not JSON") from None
    return raw


def _find_state(path: Path, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(raw.get(key), Mapping):
            return raw[key]  # type: ignore[no-any-return]
    if raw and all(isinstance(value, Tensor) for value in raw.values()):
        return raw
    raise CheckpointError(
        f"{path}: no weights found; expected a state_dict or a dictionary that holds one as 'state_dict'"
    )


def _clean_state(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = str(key)
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {shown(key)} is a {type(value).__name__}, expected a tensor")
        if name in found:
            raise CheckpointError(f"{path}: {shown(name)} appears twice once prefixes are removed")
        found[name] = value
    check_tensors(path, found)
    # copies: the file may change while it is mapped
    clean = {
        name: value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in found.items()
    }
    for name, value in clean.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name!r} holds NaN or infinite values; the training diverged")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise CheckpointError(f"{path}: {name!r} holds negative variances; the file is damaged")
    return clean


def _infer(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields the weights tell."""

    def shape(key: str, rank: int) -> tuple[int, ...]:
        if key not in state:
            raise CheckpointError(
                f"{path}: not a STAtten or Spike-driven Transformer checkpoint: {key!r} is missing "
                f"(found {len(state)} tensors, such as {', '.join(list(state)[:3]) or 'none'})"
            )
        if state[key].dim() != rank:
            raise CheckpointError(f"{path}: {key!r} has shape {list(state[key].shape)}, expected {rank} dimensions")
        return tuple(state[key].shape)

    first = shape("patch_embed.proj_conv.weight", 4)
    width = shape("patch_embed.rpe_conv.weight", 4)[0]
    classes = shape("head.weight", 2)[0]
    blocks = {int(match.group(1)) for key in state if (match := BLOCK.match(key))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise CheckpointError(f"{path}: blocks are numbered {sorted(blocks)}, expected 0, 1, 2, ... without gaps")
    hidden = shape("block.0.mlp.fc1_conv.weight", 4)[0]
    return {
        "embed_dim": width,
        "depth": len(blocks),
        "in_channels": first[1],
        "num_classes": classes,
        "mlp_ratio": hidden / width,
        "num_heads": shape("block.0.attn.talking_heads.weight", 3)[0],
        "neuron": "plif" if "head_lif.w" in state else "lif",
    }


def _stored_config(path: Path, raw: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(raw.get(CONFIG_KEY), Mapping):
        return _flat(path, raw[CONFIG_KEY]), "statten-train"
    arguments = raw.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if isinstance(arguments, Mapping):
        return _flat(path, config_values(dict(arguments))), "released"
    return {}, "bare"


def _flat(path: Path, values: Mapping[Any, Any]) -> dict[str, Any]:
    """A configuration as one is: names, and values that are a number, a text or a short list of those."""
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        if not isinstance(name, str) or len(items) > MAX_ITEMS or not all(isinstance(item, SCALARS) for item in items):
            raise CheckpointError(
                f"{path}: its configuration holds {shown(name)}: {shown(value)}; expected plain values"
            )
    return dict(values)


def _stored_quantisation(path: Path, raw: Mapping[str, Any]) -> Quantisation | None:
    if QUANTISATION_KEY not in raw:
        return None
    found = raw[QUANTISATION_KEY]
    valid = isinstance(found, Mapping) and found.keys() == {"bits", "granularity"}
    valid = valid and type(found["bits"]) is int and 2 <= found["bits"] <= 8
    if not valid or found["granularity"] not in ("channel", "tensor"):
        raise CheckpointError(
            f"{path}: {QUANTISATION_KEY} is {shown(found)}; expected bits (2 to 8) and granularity (channel, tensor)"
        )
    return Quantisation(bits=found["bits"], granularity=found["granularity"])


REQUIRED = ("time_steps", "chunk_size", "image_size", "pooling_stat")
"""Fields that weights cannot tell and that change what the network computes."""


def _missing(values: Mapping[str, Any]) -> list[str]:
    needed = [name for name in REQUIRED if not (name == "chunk_size" and values.get("attention") == "SDT")]
    return [name for name in needed if name not in values]


def _refuse_contradictions(
    path: Path, given: Mapping[str, Any], stored: Mapping[str, Any], inferred: Mapping[str, Any]
) -> None:
    """Compare as validated values, so that 32 and [32, 32] agree."""
    problems = []
    for source, values in (("--config", given), ("the checkpoint's own configuration", stored)):
        for name, told in inferred.items():
            if name in values and values[name] != told and not _same(name, values[name], told):
                problems.append(f"{name}: {source} says {values[name]!r}, the weights say {told!r}")
    for name in given.keys() & stored.keys() - inferred.keys() - {"name", "dataset"}:
        if not _same(name, given[name], stored[name]):
            problems.append(f"{name}: --config says {given[name]!r}, the checkpoint was trained with {stored[name]!r}")
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")


def _same(name: str, a: Any, b: Any) -> bool:
    if name == "image_size":
        a, b = ((value, value) if isinstance(value, int) else tuple(value) for value in (a, b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return list(a) == list(b)
    numbers = _number(a), _number(b)
    return numbers[0] == numbers[1] if None not in numbers else bool(a == b)


def _number(value: Any) -> float | None:
    """A number, also where YAML or a command line made text of it."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def _check_fit(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = STAtten(config).state_dict()
    problems = [f"missing {key}" for key in expected.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - expected.keys()]
    problems += [
        f"{key} has shape {list(state[key].shape)}, expected {list(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{path}: the weights do not fit the network: {shown}")
