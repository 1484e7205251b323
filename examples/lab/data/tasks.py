"""Three tasks on shifted digits, one to pretrain on, one near it and one far from it."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lab.data import Split
from lab.data.digits import shifted_digits

CANVAS, CLASSES = 16, 10  # side of an image in pixels; number of classes
Task = Literal["source", "near", "far"]
TASKS: tuple[Task, Task, Task] = ("source", "near", "far")


def task_images(task: Task, split: Split, seed: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 16, 16) and labels (n,); without `count` each digit of the split once.

    Near: turned by a quarter. Far: the pixels within each patch of 4 x 4 reordered, always in one way, and black and white
    swapped.
    """
    data = shifted_digits(split, 13, CANVAS, seed, count=count)
    images = data.images
    if task == "near":
        images = images.rot90(1, (-2, -1)).contiguous()
    if task == "far":
        order = torch.randperm(16, generator=torch.Generator().manual_seed(7))
        patches = functional.unfold(1 - images, 4, stride=4)[:, order]  # (n, 16 pixels of a patch, patches)
        images = functional.fold(patches, (CANVAS, CANVAS), 4, stride=4)
    return images, data.labels
