"""Images in class folders, prepared as torchvision prepares them for evaluation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsb_engine.errors import BatchError, first_line
from wsb_engine.sources.labels import numbering
from wsb_engine.sources.samples import ProgressSink, Samples, Scaling, require_room, scaled
from wsb_engine.sources.subset import stratified

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may decode; other decoders, some of which start programs, are left alone."""
MAX_PIXELS = 80_000_000
"""Largest number of pixels of one image."""

_THREADS = 8
_NAMED = 10

Resize = Literal["crop", "squash"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How an image becomes an array of float32.

    Raises:
        BatchError: ``image_settings_invalid``.
    """

    size: tuple[int, int] | None = None
    """Height and width; None if all images have one size."""
    resize: Resize = "crop"
    """crop scales the shorter side and cuts the centre out; squash scales both sides."""
    short_side: int | None = None
    """Length of the shorter side before the crop; None for the larger number of the size."""
    interpolation: Interpolation = "bilinear"
    grayscale: bool = False
    scaling: Scaling = "unit"
    """unit maps 0…255 to 0…1, symmetric to −1…1."""
    mean: tuple[float, ...] = ()
    """Subtracted after scaling: one number, or one a channel."""
    std: tuple[float, ...] = ()
    """Divides after that."""
    layout: Layout = "nchw"
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", 1 if self.grayscale else 3)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, self.channels) or not np.isfinite(values).all():
                raise _setting(f"{name} has {len(values)} numbers", f"Give one number, or {self.channels}.")
        if any(value <= 0 for value in self.std):
            raise _setting("std holds a number that is not positive", "Give the standard deviations of training.")
        if self.size is not None and not 1 <= min(self.size) <= max(self.size) <= 1 << 14:
            raise _setting(f"the size is {self.size}", "Give a height and a width from 1 to 16384.")
        if self.short_side is not None and (self.size is None or self.resize != "crop"):
            raise _setting("a shorter side is given without a crop", "Give the size of the crop as well.")
        if self.size is not None and self.short_side is not None and not max(self.size) <= self.short_side <= 1 << 14:
            raise _setting(
                f"the shorter side is {self.short_side}, the crop {self.size[0]} × {self.size[1]}",
                "Give a shorter side that is at least as long as both sides of the crop.",
            )

    def row_bytes(self, size: tuple[int, int]) -> int:
        return 4 * self.channels * size[0] * size[1]


def read_images(
    folder: Path,
    pixels: Pixels,
    *,
    classes: Sequence[str] | None = None,
    rows: int | None = None,
    seed: int = 0,
    progress: ProgressSink,
) -> Samples:
    """Read a folder with one folder of images for each class.

    Classes are numbered by the sorted names of their folders, as torchvision's ImageFolder does; a folder without
    images keeps its number. The orientation in a photograph's metadata (EXIF) is not applied: ImageFolder ignores it
    too.

    Args:
        folder: The folder; hidden folders in it are left out.
        pixels: How images become arrays.
        classes: Names of the folders in logit order; None for sorted order.
        rows: Images of a random stratified subset; None for all.
        seed: Seed of the subset.
        progress: Called with the fraction that is done.

    Raises:
        BatchError: ``pillow_missing``, ``source_not_found``, ``no_class_folders``, ``no_images``,
            ``images_unreadable``, ``image_sizes_differ``, ``batch_too_large``, and those of ``numbering`` and
            ``stratified``.
    """
    require_pillow()
    numbers, names = _classes(folder, classes)
    files = [(path, number) for name, number in numbers.items() for path in _images(folder / name)]
    if not files:
        raise BatchError(
            f"the class folders in {folder} hold no images",
            code="no_images",
            advice=f"Put files with the suffixes {', '.join(SUFFIXES)} into them.",
        )
    y = np.array([number for _, number in files], dtype=np.int64)
    chosen = stratified(y, rows, seed)
    paths = [files[index][0] for index in chosen]
    loads = [partial(_opened, path) for path in paths]
    x = stacked(loads, [str(path.relative_to(folder)) for path in paths], pixels, progress)
    return Samples({"x": x}, y[chosen], names)


def require_pillow() -> None:
    """Raise BatchError ``pillow_missing`` if images can't be decoded."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise BatchError(
            "Images are decoded by Pillow, which is not installed",
            code="pillow_missing",
            advice="pip install 'wsb-sharpness[images]'",
        ) from error


def stacked(loads: Sequence[Any], names: Sequence[str], pixels: Pixels, progress: ProgressSink) -> NDArray[np.float32]:
    """Return images as one array (N, C, H, W), or (N, H, W, C).

    Args:
        loads: A function for each image, which returns it opened.
        names: Names of the images for messages.
        pixels: How images become arrays.
        progress: Called with the fraction that is done.

    Raises:
        BatchError: ``images_unreadable``, ``image_sizes_differ``, ``batch_too_large``.
    """
    from PIL.Image import DecompressionBombWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecompressionBombWarning)  # MAX_PIXELS is stricter
        size = pixels.size or _size(loads[0], names[0])
        require_room(len(loads), pixels.row_bytes(size))
        shape = (pixels.channels, *size) if pixels.layout == "nchw" else (*size, pixels.channels)
        x = np.empty((len(loads), *shape), np.float32)
        bad = list[str]()

        def place(index: int) -> None:
            if len(bad) < _NAMED:
                try:
                    with loads[index]() as image:
                        x[index] = array_of(image, pixels, size)
                except _DifferentSizeError as error:
                    raise BatchError(
                        f"{names[index]} has {error} pixels, {names[0]} has {size[1]} × {size[0]}",
                        code="image_sizes_differ",
                        advice="Bring all images to one size: --size 224, or --size HEIGHTxWIDTH.",
                    ) from error
                except MemoryError:
                    raise
                except Exception as error:  # what decoders raise on damaged files has no common base class
                    bad.append(f"{names[index]}: {first_line(error)}")

        pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        try:
            for done, _ in enumerate(pool.map(place, range(len(loads)))):
                progress("images", done / len(loads))
        finally:
            pool.shutdown(cancel_futures=True)
    if bad:
        more = ", and perhaps more" if len(bad) >= _NAMED else ""
        raise BatchError(
            "\n".join([f"images can't be used{more}:", *sorted(bad)]),
            code="images_unreadable",
            advice="Remove or replace them.",
            images=sorted(bad),
        )
    return x


def array_of(image: Image, pixels: Pixels, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return one image as an array, resized, scaled and normalised.

    Raises:
        ValueError: if the image is too large or has more than 8 bits a channel.
    """
    from PIL.Image import Resampling

    _require_moderate(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has mode {image.mode}, more than 8 bits a channel")
    image = image.convert("L" if pixels.grayscale else "RGB")
    height, width = size
    if pixels.size is None:
        if image.size != (width, height):
            raise _DifferentSizeError(f"{image.width} × {image.height}")
    elif pixels.resize == "squash":
        image = image.resize((width, height), Resampling[pixels.interpolation.upper()])
    else:
        image = _cropped(image, pixels.short_side or max(size), size, Resampling[pixels.interpolation.upper()])
    values = scaled(np.asarray(image).reshape(height, width, pixels.channels), pixels.scaling)
    if pixels.mean:
        values -= np.asarray(pixels.mean, np.float32)
    if pixels.std:
        values /= np.asarray(pixels.std, np.float32)
    return values.transpose(2, 0, 1) if pixels.layout == "nchw" else values


class _DifferentSizeError(Exception):
    """An image has another size than the first, and there is no size to bring both to."""


def _cropped(image: Image, short: int, size: tuple[int, int], resampling: Any) -> Image:
    """Scale the shorter side and cut out the centre, rounded as torchvision's Resize and CenterCrop round."""
    width, height = image.size
    scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    if max(scaled) > MAX_PIXELS // short:
        raise ValueError(f"it has {width} × {height} pixels, which is too narrow for a crop")
    image = image.resize(scaled, resampling)
    left, top = round((scaled[0] - size[1]) / 2), round((scaled[1] - size[0]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def _opened(path: Path) -> Image:
    import PIL.Image

    return PIL.Image.open(path, formats=FORMATS)


def _size(load: Any, name: str) -> tuple[int, int]:
    """Return height and width of the first image, from its header."""
    try:
        with load() as image:
            _require_moderate(image)
            return image.height, image.width
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise BatchError(
            f"{name} can't be used: {first_line(error)}", code="images_unreadable", advice="Remove or replace it."
        ) from error


def _require_moderate(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"it has {image.width} × {image.height} pixels, the limit is {MAX_PIXELS:,}")


def _classes(folder: Path, classes: Sequence[str] | None) -> tuple[dict[str, int], tuple[str, ...]]:
    if not folder.is_dir():
        raise BatchError(f"{folder} is not a folder", code="source_not_found", advice="Give the path of a folder.")
    found = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    if not found:
        raise BatchError(
            f"{folder} has no folders in it",
            code="no_class_folders",
            advice=f"Put the images of each class into a separate folder: {folder}/NAME_OF_THE_CLASS/image.png.",
        )
    numbers, names = numbering(found, sorted(found) if classes is None else classes)
    return {name: numbers[name] for name in sorted(found)}, names or ()


def _images(folder: Path) -> Iterable[Path]:
    """Yield the images in a folder and the folders in it, sorted; links to other folders are not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        paths = (Path(place, name) for name in sorted(files) if name.lower().endswith(SUFFIXES))
        yield from (path for path in paths if path.is_file())


def _setting(found: str, advice: str) -> BatchError:
    return BatchError(found, code="image_settings_invalid", advice=advice)
