"""The configuration of a network: everything its weights cannot tell, validated, stored in every checkpoint."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from statten_deploy.errors import ConfigError
from statten_deploy.untrusted.limits import MAX_CONFIG_BYTES
from statten_deploy.untrusted.plain_yaml import parse_yaml
from statten_deploy.untrusted.text import shown

Positive = Annotated[int, Field(gt=0, le=65536)]


def _as_pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


class ModelConfig(BaseModel):
    """Shape and dynamics of one STAtten or SDT network. Units: pixels, channels, time steps.

    Raises:
        ConfigError: through `ModelConfig.create`, one line that names every wrong field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    name: str = "statten"
    dataset: str = ""
    image_size: Annotated[tuple[Positive, Positive], BeforeValidator(_as_pair)] = (32, 32)
    in_channels: Positive = 3
    num_classes: Positive = 10
    embed_dim: Positive = 256
    depth: Annotated[int, Field(gt=0, le=1024)] = 2
    num_heads: Positive = 8
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    time_steps: Annotated[int, Field(gt=0, le=1024)] = 4
    chunk_size: Positive = 2
    """S: steps per attention window. T must be a multiple of it when `window` is "block"."""
    attention: Literal["STAtten", "SDT"] = "STAtten"
    neuron: Literal["lif", "plif"] = "lif"
    dvs_mode: bool = False
    input: Literal["image", "frames"] = "image"
    """image: [B, C, H, W], the same at every step; frames: [B, T, C, H, W]."""
    pooling_stat: Annotated[str, Field(pattern=r"^[01]{4}$")] = "0011"
    pooling: Literal["maxpool", "strided"] = "maxpool"
    window: Literal["block", "sliding"] = "block"
    divide: Literal["temporal", "token"] = "temporal"
    token_groups: Positive = 1
    tet: bool = False
    mean: tuple[float, ...] | None = None
    """Per-channel input normalisation, part of the network: (x - mean) / std. None: input used as it is."""
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        found = []
        if self.embed_dim % 8:
            found.append(f"embed_dim {self.embed_dim} is not a multiple of 8 (patch embedding starts at embed_dim / 8)")
        if self.embed_dim % self.num_heads:
            found.append(f"num_heads {self.num_heads} does not divide embed_dim {self.embed_dim}")
        if (
            self.attention == "STAtten"
            and self.divide == "temporal"
            and self.window == "block"
            and self.time_steps % self.chunk_size
        ):
            found.append(f"time_steps {self.time_steps} is not a multiple of chunk_size {self.chunk_size}")
        if min(self.token_grid) < 1:
            found.append(f"image_size {self.image_size} is too small for pooling_stat {self.pooling_stat!r}")
        if self.divide == "token":
            if self.window != "block":
                found.append('divide "token" attends over all steps at once: window must be "block"')
            if self.token_grid[0] % self.token_groups:
                found.append(
                    f"token_groups {self.token_groups} does not divide the {self.token_grid[0]} rows of tokens"
                )
        elif self.token_groups != 1:
            found.append('token_groups needs divide: "token"')
        if self.hidden_dim < 1:
            found.append(f"mlp_ratio {self.mlp_ratio} leaves no hidden channel")
        for field, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.in_channels:
                found.append(f"{field} has {len(values)} values for {self.in_channels} input channels")
        if (self.mean is None) != (self.std is None):
            found.append("mean and std come together")
        if self.std is not None and min(self.std) <= 0:
            found.append("std must be positive")
        return found

    @property
    def token_grid(self) -> tuple[int, int]:
        """(H, W) of the tokens: the image halved (rounding up) at every pooling stage."""
        height, width = self.image_size
        for stage in self.pooling_stat:
            if stage == "1":
                height, width = (height + 1) // 2, (width + 1) // 2
        return height, width

    @property
    def hidden_dim(self) -> int:
        """Channels inside the MLP."""
        return hidden_width(self.embed_dim, self.mlp_ratio)

    @property
    def attention_window(self) -> int:
        """Steps one query sees: S, or all T for the token division."""
        return self.time_steps if self.divide == "token" else self.chunk_size

    @property
    def attention_scale(self) -> float:
        """Factor from attention counts to the current of `attn_lif`.

        1/H (static), 1/(H·H·S) (dvs), or 1/sqrt(rows) rounded to the nearest power of two for the token division
        (rows = T·N/G; ADR-0003), so that counts stay exact in float32.
        """
        height, width = self.token_grid
        if self.divide == "token":
            rows = self.time_steps * height * width // self.token_groups
            return float(2.0 ** -round(math.log2(rows) / 2))
        return 1.0 / (height * height * self.chunk_size) if self.dvs_mode else 1.0 / height

    @classmethod
    def create(cls, values: Mapping[str, Any], source: str = "configuration") -> "ModelConfig":
        """Validate `values`.

        Raises:
            ConfigError: names the source, every wrong field, what was found and what is expected.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            details = "; ".join(_explain(item) for item in error.errors())
            raise ConfigError(f"{source}: {details}") from None


def hidden_width(embed_dim: int, mlp_ratio: float) -> int:
    """mlp_ratio · embed_dim, rounded down as released, but not because of float rounding: 61/56 of 56 is 61."""
    return int(embed_dim * mlp_ratio + 1e-6)


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {shown(where)}; known keys: {', '.join(sorted(ModelConfig.model_fields))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (found {shown(item['input'])})" if where else message


RELEASED_KEYS: dict[str, str] = {
    "img_size": "image_size",
    "in_channels": "in_channels",
    "num_classes": "num_classes",
    "dim": "embed_dim",
    "layer": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "mlp-ratio": "mlp_ratio",
    "time_steps": "time_steps",
    "T": "time_steps",
    "chunk_size": "chunk_size",
    "pooling_stat": "pooling_stat",
    "TET": "tet",
    "dataset": "dataset",
    "attention_mode": "attention",
    "spike_mode": "neuron",
    "dvs_mode": "dvs_mode",
    "mean": "mean",
    "std": "std",
}
"""The released YAML files' own keys, and what each is called here."""

RELEASED_ONLY = frozenset(RELEASED_KEYS) - frozenset(RELEASED_KEYS.values())
RECIPE_SECTIONS = frozenset({"model", "data", "train"})
EVENT_DATASETS = ("dvs", "ncaltech", "n-caltech", "gesture", "nmnist", "n-mnist")


def _from_released(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translate released keys; every other (recipe) key is ignored."""
    known: dict[str, Any] = {}
    for key, name in RELEASED_KEYS.items():
        if values.get(key) is None:
            continue
        if name in known and known[name] != values[key]:
            raise ConfigError(
                f"keys {key!r} and its spelling variant disagree: {shown(values[key])} and {shown(known[name])}"
            )
        known[name] = values[key]
    known.update({key: value for key, value in values.items() if key in ModelConfig.model_fields and key not in known})
    if isinstance(known.get("pooling_stat"), int):  # YAML reads an unquoted 0011 as a number
        known["pooling_stat"] = _pooling_digits(known["pooling_stat"])
    dataset = str(known.get("dataset", "")).lower()
    if any(word in dataset for word in EVENT_DATASETS):
        known.setdefault("dvs_mode", True)
        known.setdefault("in_channels", 2)
    if known.get("dvs_mode"):
        known.setdefault("input", "frames")
        known.pop("mean", None), known.pop("std", None)
    return known


def _pooling_digits(value: int) -> str:
    """YAML 1.1 reads 0011 as octal 9 and 1111 as decimal; both come back to four digits."""
    text = str(value)
    if set(text) <= {"0", "1"} and len(text) == 4:
        return text
    return f"{value:o}".zfill(4)


def config_values(document: Mapping[str, Any]) -> dict[str, Any]:
    """The model fields given by a YAML document: ours (``model:`` section), or a released file's flat keys."""
    if isinstance(document.get("model"), Mapping):
        return dict(document["model"])
    if RELEASED_ONLY & document.keys():
        return _from_released(document)
    return {key: value for key, value in document.items() if key not in RECIPE_SECTIONS}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from `path`; at most 64 kiB, no aliases, no key twice.

    Raises:
        ConfigError: unreadable, too large, not YAML, or not a mapping.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(
                f"{path}: larger than {MAX_CONFIG_BYTES} bytes; a configuration file is a few lines of YAML"
            )
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: not valid YAML ({detail})") from None
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigError(f"{path}: expected a YAML mapping of names to values, found {type(document).__name__}")
    return document


def read_config_values(path: Path) -> dict[str, Any]:
    """The model fields of a YAML file, ours or released; see `config_values`."""
    return config_values(read_yaml(path))


def load_config(path: Path) -> ModelConfig:
    """A complete configuration from a YAML file."""
    return ModelConfig.create(read_config_values(path), str(path))
