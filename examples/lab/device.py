"""The device of a run: its float32, which is the same for all arms, and copies that it need not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def prepare(device: torch.device) -> None:
    """Lets a GPU round the factors of convolutions and of matrix products alike, to TF32.

    torch's defaults differ: TF32 (10 bits of mantissa) in convolutions, all 23 in matrix products, so a network of one kind
    would be timed at another precision than one of the other. Training runs in bfloat16 (7 bits) anyway.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = "tf32"


def float32_of(device: torch.device) -> str:
    """How float32 is computed there: "tf32" or "ieee"."""
    return "tf32" if device.type == "cuda" else "ieee"


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device. From the CPU to CUDA it goes through pinned memory, so that nobody waits for the copy."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
