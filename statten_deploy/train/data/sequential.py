"""Still images as time series: every step shows the next column, and nothing of those before it.

The sequential data sets of the literature (an image read column by column) as what a vision transformer takes: step t
is a frame of `w` columns at full height, [C, H, w] with w = W / T. With the usual w = 1 and T = W a frame is [C, H, 1]:
its 3x3 convolutions see along the column only, so whatever the network knows of other columns it has kept over time.
"""

from collections.abc import Callable, Sequence

import numpy as np

from statten_deploy.errors import InputError
from statten_deploy.train.data.spec import Float32Array, InputSpec, Int64Array, Samples, Source

Opener = Callable[[InputSpec], Source]


def sequential(name: str, open_images: Opener, sizes: Sequence[tuple[int, int, int]]) -> Opener:
    """The opener of data set `name`: the images of `open_images`, of one of `sizes` (C, H, W), column by column.

    Splits and labels are those of the images.
    """

    def open_columns(spec: InputSpec) -> Source:
        image = _image_shape(spec)
        if image not in sizes:
            offered = " or ".join("x".join(map(str, size)) for size in sizes)
            channels, height, width = sizes[0]
            raise InputError(
                f"{name}: the data are columns of images of {offered} (C x H x W) as frames [T, C, H, W/T], the network"
                f" takes {list(spec.shape)}; set input: frames, in_channels: {channels}, image_size: [{height}, 1] and "
                f"time_steps: {width}, or give other data with --data"
            )
        images = open_images(InputSpec(image, spec.classes))
        parts = (images.whole, images.train, images.test)
        whole, train, test = (None if part is None else Columns(part, spec.shape[0]) for part in parts)
        return Source(name, whole=whole, train=train, test=test)

    return open_columns


def _image_shape(spec: InputSpec) -> tuple[int, ...]:
    """The image whose columns the network takes: frames [T, C, H, w] side by side are [C, H, T·w]."""
    if spec.still:
        return ()
    steps, channels, height, width = spec.shape
    return (channels, height, steps * width)


class Columns(Samples):
    """Images [C, H, W] as `steps` frames [T, C, H, W/T], left to right."""

    def __init__(self, images: Samples, steps: int) -> None:
        self.images = images
        self.steps = steps

    @property
    def labels(self) -> Int64Array | None:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> Float32Array:
        image = self.images.sample(index)
        channels, height, width = image.shape
        frames = image.reshape(channels, height, self.steps, width // self.steps).transpose(2, 0, 1, 3)
        return np.ascontiguousarray(frames)

    def subset(self, indices: Int64Array) -> "Columns":
        return Columns(self.images.subset(indices), self.steps)
