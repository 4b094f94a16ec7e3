"""Patches of photographs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pyro_vae import _checks
from pyro_vae.data._shared import check_options
from pyro_vae.data.dataset import Dataset, Pixels, from_bytes
from pyro_vae.data.scikit_learn import sample_photographs

__all__ = ["photographs"]

SHARE_OF_TEST = 5
"""One part in so many of each photograph's width, in the middle, is for the test patches."""


def photographs(
    *,
    split: Literal["train", "test"] = "train",
    patch_size: int = 64,
    stride: int = 16,
    pixels: Pixels = "unit",
) -> Dataset:
    """Load patches of two colour photographs, a Chinese temple and a flower, `(N, 3, 64, 64)`: real RGB pixels.

    Nothing is downloaded: scikit-learn carries the photographs, of 427 x 640 pixels. Test patches are cut from the
    middle fifth of each and the others from both sides of it, so that no pixel is in both. Patches overlap; they are no
    independent draws, and their log p(x) says how well two photographs are modelled, no more. Labels say which
    photograph.

    Args:
        split: `"train"` or `"test"`.
        patch_size: height and width of patches, at most 128.
        stride: from one patch to the next, both down and to the right.
        pixels: `"unit"` or `"bytes"`, as in `cifar10`.

    Raises:
        ValueError: for arguments out of range.
        ImportError: without scikit-learn.

    Examples:
        >>> photographs(split="test", stride=64).x.shape
        torch.Size([24, 3, 64, 64])
    """
    check_options(split, pixels=pixels)
    size, step = _checks.whole_number("patch_size", patch_size), _checks.whole_number("stride", stride)
    strips = [_strips(photograph, split) for photograph in sample_photographs()]
    narrowest = min(strip.shape[1] for photograph in strips for strip in photograph)
    if size > narrowest:
        raise ValueError(f"patch_size: expected at most {narrowest} to {split}; got {size}; pass a smaller one.")
    patches = [np.concatenate([_patches(strip, size, step) for strip in photograph]) for photograph in strips]
    return from_bytes(
        np.concatenate(patches), np.repeat(np.arange(len(patches)), [len(each) for each in patches]),
        name=f"photographs, {size} x {size} patches every {step} pixels",
        split=split, source="the package scikit-learn", pixels=pixels,
    )  # fmt: skip


def _strips(photograph: np.ndarray, split: str) -> list[np.ndarray]:
    width = photograph.shape[1] // SHARE_OF_TEST
    left, middle, right = np.split(photograph, [2 * width, 3 * width], axis=1)
    return [left, right] if split == "train" else [middle]


def _patches(photograph: np.ndarray, size: int, step: int) -> np.ndarray:
    """Cut `(H, W, 3)` into `(N, 3, size, size)`."""
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (size, size), axis=(0, 1))[::step, ::step]
    return windows.reshape(-1, *windows.shape[2:])
