"""Run one checkpoint on a picture: load it, time it after a warm-up, and say in a line what it lacks if it cannot be run."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import statistics
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.cards.packaged import Packaged
from scripts.cards.releases import Checkpoint
from scripts.checkpoints.clips import ON_A_CLIP, clip_runner
from scripts.checkpoints.containers import UnavailableError, path_of
from scripts.checkpoints.found import Attempt, Prompt
from scripts.checkpoints.packaged import packaged_runner, taken_by
from scripts.checkpoints.pictures import Kind, Picture
from scripts.checkpoints.runners import LIBRARIES, ON_A_PICTURE, Runner, runner
from scripts.checkpoints.scans import OUTPUT, PACKAGES, scan_runner
from scripts.checkpoints.snippets import FOLDERS, brings_code
from scripts.checkpoints.ways import Way

REPEATS = 3
ENOUGH_SECONDS = 2.0
LONGEST_LINE = 300


def unfit(checkpoint: Checkpoint, kind: Kind = "picture") -> str | None:
    """Why a checkpoint cannot be tried on something of a kind anywhere; None if it can be where its library is."""
    takes = takes_of(checkpoint)
    if takes is None:
        return f"gives {checkpoint.output}, which is not yet tried here"
    if takes != kind and (takes, kind) != ("picture", "clip"):  # of a clip a model of pictures sees the first frame
        return f"takes a {takes}, and this is a {kind}"
    if checkpoint.load.library not in (PACKAGES if takes == "volume" else LIBRARIES):
        return f"loads with {checkpoint.load.library}, which is not yet tried here"
    if Way.TEXT_IN_A_CLIP.of(checkpoint):
        return "follows a text through a clip, which is not yet tried here"
    if brings_code(checkpoint):
        return "runs code that comes with the weights; read that code, then run the snippet of its page yourself"
    return None


def takes_of(checkpoint: Checkpoint) -> Kind | None:
    """What a checkpoint looks at, if it is of a kind that is tried here."""
    if checkpoint.output == OUTPUT:
        return "volume"
    return "picture" if checkpoint.output in ON_A_PICTURE else "clip" if checkpoint.output in ON_A_CLIP else None


def refused(checkpoint: Checkpoint, kind: Kind = "picture") -> str | None:
    """Why a checkpoint cannot be tried here, before anything is loaded; None if it can be."""
    why, library = unfit(checkpoint, kind), checkpoint.load.library
    if why is None and importlib.util.find_spec(PACKAGES.get(library, library)) is None:
        return f"needs the package {library}: pip install {library}"
    return why


def attempt(
    id: str, checkpoint: Checkpoint, picture: Picture, prompt: Prompt, device: str = "cpu", random: bool = False
) -> Attempt:
    """What a checkpoint makes of a picture; whatever goes wrong becomes the attempt's error."""
    if why := refused(checkpoint, picture.kind):
        return Attempt(id, error=why)

    if random and picture.volume:
        return Attempt(id, error=f"{checkpoint.load.library} has no network without its weights")

    def load() -> Runner:
        if picture.volume:
            return scan_runner(checkpoint, picture.volume, device)
        if takes_of(checkpoint) == "clip":
            return clip_runner(checkpoint, picture, prompt, device, random)
        return runner(checkpoint, picture.image, prompt, device, random)

    return _attempt(id, load, device, checkpoint)


def attempt_packaged(id: str, packaged: Packaged, picture: Picture, device: str = "cpu") -> Attempt:
    """What weights of a package make of a picture or a volume."""
    takes = taken_by(packaged)
    if (takes == "volume") != (picture.kind == "volume"):
        return Attempt(id, error=f"takes a {takes}, and this is a {picture.kind}")
    try:
        path = path_of(packaged.file)
    except UnavailableError as error:
        return Attempt(id, error=str(error))
    return _attempt(id, lambda: packaged_runner(packaged, path, picture, device), device, None)


def _attempt(id: str, load: Callable[[], Runner], device: str, checkpoint: Checkpoint | None) -> Attempt:
    """Load and run; weights of a package are no checkpoint."""
    versions = versions_for(checkpoint)
    try:
        began = time.perf_counter()
        loaded, seconds, ms = load(), None, None
        if loaded.whole:
            outputs = loaded.forward()
        else:
            seconds = time.perf_counter() - began
            outputs, ms = _timed(loaded.forward, device)
        return Attempt(id, loaded.read(outputs), "", device, seconds, ms, _peak(device), versions)
    except Exception as error:  # whatever a library raises is told, and the others go on
        return Attempt(id, error=reason(error, checkpoint), device=device, versions=versions)


def versions_for(checkpoint: Checkpoint | None) -> dict[str, str]:
    """Of torch, and of the library that loads a checkpoint."""
    packages = ["torch"] + ([checkpoint.load.library] if checkpoint else [])
    return {name: importlib.metadata.version(name) for name in packages}


def reason(error: BaseException, checkpoint: Checkpoint | None) -> str:
    """Why weights did not run, in a line: the file that is lacking, if that is what the error is about, or what it says."""
    lacking = missing(checkpoint) if checkpoint and is_about_files(error) else None
    return lacking or in_a_line(error)


def in_a_line(error: BaseException) -> str:
    """What an error says, without its line ends and not too long."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", LONGEST_LINE, placeholder=" ...")


def _timed(forward: Callable[[], Any], device: str) -> tuple[Any, float]:
    """The output, and the median time in milliseconds of a few passes after the first one."""
    outputs = _wait(forward(), device)
    taken: list[float] = []
    while len(taken) < REPEATS and sum(taken) < ENOUGH_SECONDS:
        began = time.perf_counter()
        outputs = _wait(forward(), device)
        taken.append(time.perf_counter() - began)
    return outputs, 1000 * statistics.median(taken)


def _wait(outputs: Any, device: str) -> Any:
    """A pass is over when the accelerator is done, not when it was asked."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
    return outputs


def _peak(device: str) -> float | None:
    """Megabytes at the peak: of the accelerator, or else of this process with its libraries."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if device == "mps":
        return torch.mps.driver_allocated_memory() / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


ABOUT_FILES = (
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "EntryNotFoundError",
    "GatedRepoError",
    "ConnectError",
)


def is_about_files(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that files could not be found or fetched."""
    seen: BaseException | None = error
    while seen is not None:
        names = {each.__name__ for each in type(seen).__mro__}
        if isinstance(seen, OSError) or names & set(ABOUT_FILES):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def missing(checkpoint: Checkpoint) -> str | None:
    """What is missing of a checkpoint and where it belongs; None if all that is looked for is there."""
    if checkpoint.load.library in PACKAGES:
        return None  # it looks for its files itself
    if checkpoint.load.library == "torchvision":
        path = _torchvision_file(checkpoint)
        return None if path.is_file() else f"{path.name} is missing: put it into {path.parent} (TORCH_HOME moves that)"
    repository, files = hub_files(checkpoint)
    folder = _hub_folder() / f"models--{repository.replace('/', '--')}"
    revision, is_named = _revision(folder)
    held = {path.name for path in (folder / "snapshots" / revision).glob("*")}
    files_lacking = ", ".join(" or ".join(names) for names in files if not held & set(names))
    lacking = [f"{files_lacking} missing in {folder / 'snapshots' / revision}"] if files_lacking else []
    lacking += [] if is_named else [f"the word {revision}, without a line end, missing in {folder / 'refs/main'}"]
    if not lacking:
        return None
    gate = f"; ask for access at https://huggingface.co/{repository} first" if checkpoint.gated else ""
    return (
        f"{repository} is not on this machine and could not be fetched: {', and '.join(lacking)} (HF_HOME moves that); "
        f"with a network: hf download {repository}{gate}"
    )


def _revision(folder: Path) -> tuple[str, bool]:
    """The folder below `snapshots` of which a repository's files are taken, and whether `refs/main` says so, as it has to."""
    named = folder / "refs/main"
    if named.is_file():
        word = named.read_text("utf-8")
        return word.strip(), word == word.strip()
    return next((path.name for path in sorted(folder.glob("snapshots/*")) if path.is_dir()), "main"), False


def hub_files(checkpoint: Checkpoint) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """The repository on the hub, and which files it takes, each under any of several names."""
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    if checkpoint.load.library == "timm":
        import timm

        configuration = timm.get_pretrained_cfg(checkpoint.load.name)
        return (configuration and configuration.hf_hub_id) or checkpoint.load.name, (weights,)
    processor = ("preprocessor_config.json", "processor_config.json")
    return checkpoint.load.name, (("config.json",), processor, weights)


def _hub_folder() -> Path:
    from huggingface_hub import constants

    return Path(str(constants.HF_HUB_CACHE))


def _torchvision_file(checkpoint: Checkpoint) -> Path:
    import torch

    enumeration, _, member = checkpoint.load.name.partition(".")
    weights = getattr(importlib.import_module(FOLDERS[checkpoint.output]), enumeration)[member]
    return Path(str(torch.hub.get_dir())) / "checkpoints" / os.path.basename(str(weights.url))
