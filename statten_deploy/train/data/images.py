"""Pictures: read from a file, and fitted to what a network takes."""

import math
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.train.data.spec import Float32Array, InputSpec, Samples
from statten_deploy.untrusted.limits import MAX_PIXELS, check_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
"""Pillow's colour mode for a number of channels."""
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""Image files that are read; Pillow knows more, some of which start other programs."""
PIXEL_BYTES = 12
"""Most that decoding and converting take for a pixel."""


class ImageSamples(Samples):
    """Samples that are pictures: augmentation of images starts from these, not from what was fitted to the network."""

    @abstractmethod
    def picture(self, index: int) -> "Image":
        """The picture in its own size, in the network's colour mode."""


def check_takes_images(data: str, spec: InputSpec) -> None:
    """
    Raises:
        InputError: the network takes no still images of 1 or 3 channels.
    """
    if not spec.still or spec.shape[0] not in MODES:
        raise InputError(
            f"{data}: gives still images of 1 or 3 channels, the network takes {list(spec.shape)}; "
            f"give an .npz file with x [N, {', '.join(map(str, spec.shape))}]"
        )


def read_picture(path: Path, channels: int) -> "Image":
    """One image file, decoded, in the colour mode of so many channels.

    Raises:
        InputError: the file is not an image that can be decoded.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large and odd files; what is too large is said below
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
                check_bytes(path, image.width * image.height * PIXEL_BYTES)
                return image.convert(MODES[channels])
    except InputError:
        raise
    except Exception as error:  # Pillow raises a different type for every format and kind of damage
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be decoded as an image ({detail}); repair or remove it") from None


def fit(picture: "Image", spec: InputSpec, crop: float | None) -> Float32Array:
    """A picture as [C, H, W] in [0, 1].

    crop None: resized to H x W (bilinear). Else, as ImageNet is evaluated: the shorter side becomes
    floor(H / crop) (bicubic), and the centre H x W is cut out.
    """
    from PIL import Image

    channels, height, width = spec.shape
    if crop is None:
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    else:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        picture = resize(picture, math.floor(min(height, width) / crop), InterpolationMode.BICUBIC)
        picture = center_crop(picture, [height, width])
    return pixels(np.asarray(picture), channels)


def pixels(values: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", channels: int) -> Float32Array:
    """Bytes [H, W] or [H, W, C] as [C, H, W] in [0, 1]."""
    height, width = values.shape[:2]
    scaled = values.astype(np.float32).reshape(height, width, channels) / np.float32(255)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))
