"""`python -m scripts measure`: the time and memory of a forward pass of each counted architecture, with random weights.

Each architecture runs in a process of its own, forked from one that has imported the libraries: so its memory is its
own, and whatever ends it (out of memory, a crash, the time limit) ends nothing else and is recorded. A record is
written after each.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scripts.architectures import latency
from scripts.architectures.counts import first_line, needed
from scripts.architectures.latency import Latency
from scripts.cards.library import Library
from scripts.cards.values import size_of
from scripts.machine import cores, device_class
from scripts.project import Project

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "monai")

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

PRELOADED = (
    "scripts.__main__", "scripts.architectures.measure", "scripts.site.gather", "scripts.architectures.definitions",
    "timm", "monai.networks.nets", "torchvision.models.detection", "transformers.modeling_layers",
)  # fmt: skip
"""Imported once, by the process that all others are forked from."""

START_SECONDS = 180
"""For the first process, which imports the libraries."""


@dataclass(frozen=True)
class Job:
    """One architecture and how to time it."""

    build: str
    size: tuple[int, ...]
    device: str
    batch: int
    precision: str
    repeats: int
    threads: int
    seconds: float


def measure(project: Project, library: Library, options: argparse.Namespace) -> int:
    """Time what is asked for and write the record; 1 if nothing could be timed."""
    keys = wanted(library, options.models)
    if not keys:
        print("no counted architecture matches; name slugs of cards or builds, such as timm/", file=sys.stderr)
        return 1
    device = device_class(options.device)
    threads = options.threads or cores()
    context = mp.get_context("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
    context.set_forkserver_preload(list(PRELOADED))
    about = _asked(context, describe, (device,), START_SECONDS)
    if isinstance(about, str):
        print(f"cannot use the device {device}: {about}", file=sys.stderr)
        return 1
    folder = latency.kept_folder(project) if options.keep else latency.own_folder(project)
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', about['name'].lower()).strip('-')}.json"
    on = f"{about['name']}{f', {threads} threads' if device == 'cpu' else ''}"
    print(f"{len(keys)} architectures on {on}, {options.precision}, batch {options.batch}", flush=True)
    good = 0
    for i, key in enumerate(keys, 1):
        build, _, size = key.partition(" @ ")
        size = re.sub(r"\s*x\s*", " x ", options.input) if options.input else size
        job = Job(
            build, size_of(size), device, options.batch, options.precision, options.repeats, threads,
            options.seconds,
        )  # fmt: skip
        entry = _entry(context, job, about["name"], size)
        latency.write(path, about, [entry])
        good += entry.error is None
        print(f"[{i}/{len(keys)}] {build} @ {size}: {_told(entry)}", flush=True)
    print(f"{good} of {len(keys)} timed; the record is {path.relative_to(project.root)}")
    return 0 if good else 1


def wanted(library: Library, names: Sequence[str]) -> list[str]:
    """`build @ input` of the named cards, or of the builds that begin so; of all without a name."""
    if not names:
        return needed(library)
    counts = [v.count for name in names if name in library.cards for v in library.cards[name].variants.values()]
    of_cards = {count.key for count in counts if count}
    builds = tuple(name for name in names if name not in library.cards)
    return [key for key in needed(library) if key in of_cards or (builds and key.startswith(builds))]


def _entry(context: Any, job: Job, device: str, size: str) -> Latency:
    entry = Latency(
        device, job.build, size, job.batch, job.precision, job.threads if job.device == "cpu" else None,
        versions={"python": platform.python_version(), **{name: version(name) for name in _libraries(job.build)}},
    )  # fmt: skip
    result = _asked(context, _time, (job,), job.seconds)
    return replace(entry, error=result) if isinstance(result, str) else replace(entry, **result)


def _libraries(build: str) -> list[str]:
    own = build.partition("/")[0]
    return ["torch", *([own] if own in LIBRARIES else [])]


def _told(entry: Latency) -> str:
    if entry.error:
        return entry.error
    return (
        f"{entry.ms:.1f} ms ({entry.ms_low:.1f} to {entry.ms_high:.1f}, {entry.repeats} times), {entry.peak_mb:.0f} MB"
    )


def _asked(context: Any, work: Any, arguments: tuple[object, ...], seconds: float) -> Any:
    """What `work` gives back in a process of its own, or the reason why it gives nothing back."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, work, arguments), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(seconds) else f"not done within {seconds:g} s"
    except EOFError:
        process.join(5)
        code = process.exitcode
        return f"the process ended with {code}" + (" (killed: out of memory?)" if code == -9 else "")
    finally:
        process.kill()
        process.join()
        here.close()


def _answer(pipe: Connection, work: Any, arguments: tuple[object, ...]) -> None:
    try:
        pipe.send(work(*arguments))
    except BaseException as error:  # whatever a library raises is this architecture's result
        pipe.send(first_line(error) if isinstance(error, Exception) else type(error).__name__)


def describe(device: str) -> dict[str, object]:
    """Name of the device and what else identifies it."""
    import torch

    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        return {"class": device, "name": about.name, "memory_gb": round(about.total_memory / 2**30)}
    return {"class": device, "name": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named[1].strip() if named else platform.processor() or platform.machine()


def _time(job: Job) -> dict[str, object]:
    """Quartiles of the time of a forward pass in ms, and the peak of memory above that of the idle process, in MB."""
    import torch

    from scripts.architectures.definitions import inputs, part

    began = time.perf_counter()
    torch.set_num_threads(job.threads)
    idle = _peak_bytes(job)
    if job.device == "cpu":
        _limit_memory(job)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[job.precision]
    model = _random_model(job, torch.device(job.device)).to(kind)
    with torch.device(job.device), torch.inference_mode():
        arguments = [x.to(kind) if x.is_floating_point() else x for x in inputs(job.build, job.size, job.batch)]

        def once() -> float:
            start = time.perf_counter()
            model(*arguments)
            _synchronise(job.device)
            return time.perf_counter() - start

        # Two runs to warm up, or one where it takes a fifth of the time; then until the time is nearly over.
        if once() < 0.2 * job.seconds:
            once()
        times: list[float] = []
        while len(times) < job.repeats and (
            not times or time.perf_counter() - began + 2 * max(times) < 0.9 * job.seconds
        ):
            times.append(once())
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    peak = (_peak_bytes(job) - (idle if job.device == "cpu" else 0)) / 1e6
    return {
        "repeats": len(times), "ms": round(1e3 * middle, 3), "ms_low": round(1e3 * low, 3),
        "ms_high": round(1e3 * high, 3), "peak_mb": round(peak, 1), "part": part(job.build),
    }  # fmt: skip


def _random_model(job: Job, device: Any) -> Any:
    """The architecture with weights from one block of noise, at the scale of He: an initialisation takes long."""
    import torch
    from torch import Tensor, nn
    from torch.overrides import TorchFunctionMode

    from scripts.architectures.definitions import build

    skipped = {Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, nn.init.trunc_normal_}

    class Uninitialised(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in skipped else func(*args, **(kwargs or {}))

    with device, Uninitialised(), torch.no_grad():
        model = build(job.build, job.size).requires_grad_(False)
    noise = torch.randn(65_536, device=device)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            flat = noise.repeat(-(-weight.numel() // len(noise)))[: weight.numel()].view(weight.shape)
            weight.copy_(flat * (2 / (weight.numel() / len(weight))) ** 0.5)
        elif name.endswith("bias") or not bool(weight.isfinite().all()):
            weight.zero_()
    return model


def _limit_memory(job: Job) -> None:
    """Refuse what cannot fit, and let an allocation fail rather than have the system end a process.

    Raises:
        MemoryError: the weights alone need more than is free.
    """
    info = Path("/proc/meminfo")
    if not info.is_file():
        return
    import resource

    import torch

    from scripts.architectures.definitions import build

    free = 1024 * int(next(line.split()[1] for line in info.read_text().splitlines() if line.startswith("MemAvail")))
    with torch.device("meta"):
        weights = 4 * sum(p.numel() for p in build(job.build, job.size).parameters())
    if weights * 1.3 > free:
        raise MemoryError(f"the weights take {weights / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * free) + _resident_bytes(), resource.RLIM_INFINITY))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _peak_bytes(job: Job) -> int:
    if job.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if job.device == "mps":
        import torch

        return torch.mps.driver_allocated_memory()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _synchronise(device: str) -> None:
    import torch

    if device != "cpu":
        getattr(torch, device).synchronize()
