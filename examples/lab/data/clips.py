"""Moving digits: clips whose class is the direction of motion.

The canvas is a torus: what leaves at one side comes in at the other, and the place in the first frame is uniform. So
every single frame has the same distribution in all classes, and only frames taken together tell the class.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lab.data import Split
from lab.data.digits import digits

DIRECTIONS = ("right", "down", "left", "up")
STEPS = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # (rows, columns) per direction


@dataclass(frozen=True)
class Clips:
    """A set of clips.

    frames: (N, T, 1, H, W) float32 in [0, 1]. labels: (N,) int64, an index of `DIRECTIONS`. speeds: (N,) int64, pixels
    per frame. digits: (N,) int64, which digit moves, 0-9; it says nothing about the class.
    """

    frames: Tensor
    labels: Tensor
    speeds: Tensor
    digits: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: slice | Tensor) -> "Clips":
        return Clips(self.frames[index], self.labels[index], self.speeds[index], self.digits[index])

    def to(self, device: torch.device | str) -> "Clips":
        return Clips(*(part.to(device) for part in (self.frames, self.labels, self.speeds, self.digits)))


def moving_digits(
    split: Split,
    count: int,
    *,
    seed: int,
    frames: int = 8,
    canvas: int = 16,
    size: int = 8,
    speeds: tuple[int, int] = (1, 2),
    noise: float = 0.05,
) -> Clips:
    """Makes `count` clips of `frames` frames of (canvas, canvas) pixels; the classes are as even as the count allows.

    size: of the digit in pixels, 8 up to the canvas. speeds: range in whole pixels per frame, both ends included.
    noise: standard deviation of Gaussian noise, drawn anew in each frame; the result is clipped to [0, 1].
    Raises ValueError where the canvas is smaller than the digit, and for speeds of half the canvas and above: motion by
    half the canvas looks the same in both directions, and faster motion looks like slower motion backwards.
    """
    if canvas < size:
        raise ValueError(f"a digit of {size} pixels does not fit on a canvas of {canvas}")
    if not 1 <= speeds[0] <= speeds[1] or 2 * speeds[1] >= canvas:
        raise ValueError(f"speeds are {speeds} pixels a frame; ask for a range from 1 to below {canvas / 2:g}")
    if count < 1 or frames < 1:
        raise ValueError(f"count {count} and frames {frames}: ask for at least one of each")
    rng = np.random.default_rng(seed)
    source = digits(split, size)
    chosen = torch.from_numpy(rng.integers(len(source), size=count))
    labels = rng.permutation(np.arange(count) % len(DIRECTIONS))
    speed = rng.integers(speeds[0], speeds[1] + 1, size=count)
    start = rng.integers(canvas, size=(count, 2))
    moved = STEPS[labels] * speed[:, None]  # (N, 2)
    corner = start[:, None] + np.arange(frames)[:, None] * moved[:, None]  # (N, T, 2): rows, columns
    at = (np.arange(canvas) - corner[..., None]) % canvas  # (N, T, 2, canvas): pixel of the unmoved canvas
    still = torch.zeros(count, canvas, canvas)
    still[:, :size, :size] = source.images[chosen, 0]
    rows, columns = torch.from_numpy(at).unbind(2)  # each (N, T, canvas)
    which = torch.arange(count)[:, None, None, None]
    clips = still[which, rows[..., :, None], columns[..., None, :]]  # (N, T, H, W)
    if noise > 0:
        clips += noise * torch.from_numpy(rng.standard_normal(clips.shape, dtype=np.float32))
    return Clips(
        clips.clamp_(0, 1)[:, :, None],
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(speed.astype(np.int64)),
        source.labels[chosen],
    )
