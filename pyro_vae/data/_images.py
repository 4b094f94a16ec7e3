"""Read a folder of images into one array. The only file that imports Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import _checks

__all__ = ["is_folder_of_images", "read_files", "read_images"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FITS = ("resize", "crop")


def is_folder_of_images(folder: Path) -> bool:
    """Tell whether a folder, or one below it, holds a file that is named like an image."""
    return next(_files(folder), None) is not None


def read_images(
    folder: Path, size: Sequence[int] | None, fit: str, channels: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read all images of a folder in the order of their names, as bytes `(N, C, H, W)`.

    Args:
        folder: of images. Where all of them lie in folders below it, these are the labels, in the order of their names.
        size: (height, width) to bring each image to; None where all have one size.
        fit: "resize", whatever becomes of the proportions; or "crop", to the middle of an image that is scaled to fill
            the size.
        channels: 1, 3 or 4 to convert to; None to keep them.
    """
    size = None if size is None else _checked_size(size)
    _checks.choice("image_fit", fit, FITS)
    _checks.choice("channels", channels, (None, *MODES))
    files = sorted(_files(folder))
    if not files:
        raise ValueError(f"data: expected a folder of images; got {str(folder)!r}, which holds none; name another.")
    first = _pixels(files[0], size, fit, channels)
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    for place, file in enumerate(files):
        pixels = first if place == 0 else _pixels(file, size, fit, channels)
        if pixels.shape != first.shape:
            raise _of_mixed_shapes(files[0], first, file, pixels)
        images[place] = pixels
    return images, _labels(files, folder)


def read_files(files: Sequence[Path], size: tuple[int, int], crop: int) -> np.ndarray:
    """Read the middle `crop` x `crop` of some images, scaled to a size, as bytes `(N, 3, H, W)`."""
    images = np.empty((len(files), 3, *size), dtype=np.uint8)
    for place, file in enumerate(files):
        images[place] = _pixels(file, size, "resize", 3, crop)
    return images


def _files(folder: Path) -> Iterator[Path]:
    return (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _checked_size(size: Any) -> tuple[int, int]:
    sizes = _checks.shape("image_size", size)
    if len(sizes) != 2:
        raise ValueError(f"image_size: expected a height and a width; got {size!r}; pass two numbers.")
    return sizes[0], sizes[1]


def _pixels(
    file: Path, size: tuple[int, int] | None, fit: str, channels: int | None, crop: int | None = None
) -> np.ndarray:
    """Read one image as bytes `(C, H, W)`."""
    from PIL import Image, ImageOps

    with _naming(file), Image.open(file) as opened:
        image = _in_bytes(file, opened, channels)
        image = image if crop is None else _middle(file, image, crop)
        if size is not None:
            height, width = size
            resample = Image.Resampling.BILINEAR
            if fit == "crop":
                image = ImageOps.fit(image, (width, height), resample)
            else:
                image = image.resize((width, height), resample)
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _middle(file: Path, image: Any, side: int) -> Any:
    """Cut out a square."""
    if side > min(image.size):
        raise ValueError(
            f"crop: expected at most the {min(image.size)} pixels of {str(file)!r}; got {side}; pass a smaller one."
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _in_bytes(file: Path, image: Any, channels: int | None) -> Any:
    """Convert an image to one byte a channel."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"data: expected images of 8 bits; got {str(file)!r} of mode {image.mode}, which would lose digits; "
            "convert them, or save them all in one .npz file."
        )
    if channels is not None:
        return image.convert(MODES[channels])
    if image.mode in MODES.values():
        return image
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.mode in ("LA", "PA") or "transparency" in image.info else "RGB")


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file in whatever Pillow says of it."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"data: expected images of at most {Image.MAX_IMAGE_PIXELS:,} pixels; got {str(file)!r} with more; scale "
            "it down, or remove it."
        ) from error
    except Exception as error:  # Pillow raises errors of many kinds for other bytes
        if str(file) in str(error) and isinstance(error, ValueError):
            raise
        reason = getattr(error, "strerror", None) or "truncated, damaged or no image"
        raise ValueError(
            f"data: expected images that can be read; got {str(file)!r} ({reason}); repair or remove it."
        ) from error


def _of_mixed_shapes(file: Path, pixels: np.ndarray, other_file: Path, other: np.ndarray) -> ValueError:
    if len(pixels) != len(other):
        return ValueError(
            f"data: expected images with as many channels each; got {len(pixels)} in {file.name!r} and {len(other)} in "
            f"{other_file.name!r}; convert them all by channels=1 or channels=3 (--channels 3)."
        )
    sizes = " and ".join(f"{each.shape[1]}x{each.shape[2]} in {path.name!r}" for path, each in
                         ((file, pixels), (other_file, other)))  # fmt: skip
    return ValueError(
        f"data: expected images of one size, height x width; got {sizes}; bring them to one by image_size=(64, 48) "
        "(--image-size 64x48 --resize, or --crop)."
    )


def _labels(files: list[Path], folder: Path) -> np.ndarray | None:
    """Number the folders that the images lie in; None where some lie in no folder of their own, or all in one."""
    names = [file.relative_to(folder).parts[0] if file.parent != folder else None for file in files]
    if None in names or len({*names}) == 1:
        return None
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
