"""What a run ran on, as its record says it: device, versions, memory."""

from __future__ import annotations

import math
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lab.device import float32_of

PACKAGES = ("torch", "torchvision", "timm", "numpy")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that a result may depend on; None where one is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def described(device: torch.device) -> dict[str, Any]:
    """Class, name, threads of the CPU, and how float32 is computed there."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "class": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "float32": float32_of(device),
    }


def _cpu_name() -> str:
    """Model of the processor (on Apple silicon also that of the GPU)."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match[1].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peak_memory(device: torch.device) -> dict[str, float | None]:
    """Most memory that the process and, on CUDA, the device held, in MB (10^6 bytes); None where unknown."""
    peak: dict[str, float | None] = {"peak_memory_mb": None}
    try:
        import resource  # not on Windows
    except ImportError:
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        peak["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    if device.type == "cuda":
        peak["peak_device_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    return peak


def needed(device: torch.device, seconds: float) -> dict[str, Any] | None:
    """Memory, minutes and card of a run that is over; None where it was not on CUDA."""
    if device.type != "cuda":
        return None
    gigabytes = torch.cuda.max_memory_reserved(device) / 1e9
    card = torch.cuda.get_device_name(device)
    return {"memory_gb": round(gigabytes, 1), "minutes": math.ceil(seconds / 60), "card": card}
