"""A stand-in for a GPU: ``python tests/stand_in.py SCRIPT ARGUMENTS`` runs a script whose device "cuda" is none.

Values are computed on the CPU. Tensors of the device are marked, and an operator that mixes them with those of the CPU, as CUDA
would not, stops the script with its name and the line. What the host waits for in each step of `lab.training.fit` is counted as
`torch.cuda.set_sync_debug_mode` counts it, and written as JSON to the file that the environment variable STAND_IN names:
``{"steps": 8, "most": 2, "places": {"aten.nonzero at examples/x.py:7": 8}}``, where "most" is that of a step.

torch has what this is made of, but no such thing: `FakeTensorMode` knows devices and holds no values, so nothing that looks at
data runs on it, and without a driver its backward pass fails; the meta device holds none either. So this is a device that is
registered from Python (PrivateUse1), its tensors wrap those of the CPU, and its autocast has the lists of CUDA's:
https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch._dynamo  # before anything is replaced
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME, CUDA = "stand_in", torch.device("cuda", 0)
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
aten = torch.ops.aten

LOWER = """addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d
    conv_transpose3d convolution linalg_multi_dot linalg_vecdot linear matmul mm mv prelu scaled_dot_product_attention"""
FLOAT32 = """acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity cross_entropy_loss
    cumprod cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss huber_loss kl_div l1_loss layer_norm log log10 log1p log2
    log_softmax logsumexp margin_ranking_loss mse_loss nll_loss nll_loss_nd norm nuclear_norm pdist pow prod reciprocal rsqrt
    sinh smooth_l1_loss soft_margin_loss softmax softmin softplus sum tan triplet_margin_loss"""
WIDEST = "addcdiv addcmul atan2 bilinear cat cross dot grid_sampler index_put scatter_add stack tensordot vdot"

TAKES_SCALARS = {aten.fill_, aten.fill, aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_}
"""Operators with a value, which may be one number on the CPU; of those elementwise any operand may."""
INDEXED = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
    aten._unsafe_index,
    aten._unsafe_index_put,
}
COPIES = {aten.copy_, aten.copy, aten._to_copy}


SCRIPTS: list[Path] = []
"""Folders of the script that runs, and of its claims."""


class MixedDevicesError(RuntimeError):
    """An operator mixes tensors of the device and of the CPU."""


class OnDevice(Tensor):
    """A tensor of the device, around one of the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        out: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        out.inner = inner
        return out

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
        if device is None or is_asked(device):
            return super().to(
                dtype=dtype, memory_format=layout or torch.preserve_format, copy=kwargs.get("copy", False)
            )
        return aten._to_copy(self, dtype=dtype, device=device, non_blocking=non_blocking, memory_format=layout)

    def cpu(self, *args: Any) -> Tensor:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> Tensor:
        return self

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: the stand-in is not there")


class Generator(torch.Generator):
    """Random numbers of a device, all drawn on the CPU."""

    ours: ClassVar[dict[int, Generator]] = {}
    """Those of the device, by what an operator is given of them."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        out = super().__new__(cls, "cpu")
        if is_asked(torch.device(device)):
            cls.ours[out._cdata] = out
        return out

    device = property(lambda self: CUDA if self._cdata in self.ours else torch.device("cpu"))


def is_asked(device: torch.device | None) -> bool:
    return device is not None and device.type in ("cuda", NAME)


def plain(value: Any) -> Any:
    """What runs on the CPU in place of an argument."""
    if isinstance(value, OnDevice):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and is_asked(value) else value


def place() -> str:
    """The line of the script that is running, and that of the lab where it came through it."""
    frame, through = sys._getframe(1), ""
    while frame is not None:
        path, line = Path(frame.f_code.co_filename), frame.f_lineno
        if path.name == "cost.py":  # counts each operator of one step, and is no place of its own
            pass
        elif path.is_relative_to(EXAMPLES / "lab"):
            through = through or f" ({path.relative_to(EXAMPLES)}:{line})"
        elif path.parent in SCRIPTS:
            return f"{path.name if path.parent == SCRIPTS[0] else path.relative_to(SCRIPTS[0])}:{line}{through}"
        frame = frame.f_back  # type: ignore[assignment]
    return f"the backward pass{through}"


class StandIn(TorchDispatchMode):
    """Runs each operator on the CPU, marks what belongs to the device, and counts what a step waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.step: Counter[str] | None = None
        self.steps: list[Counter[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        device = kwargs.get("device")
        ours = any(isinstance(each, OnDevice) for each in given)
        self.check(func, args, kwargs, given)
        if self.step is not None and self.waits(func, args, kwargs, given):
            self.step[f"{func} at {place()}"] += 1
        out = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        if not (ours if device is None else is_asked(device)):
            return out
        out = tree_map(lambda each: OnDevice(each) if isinstance(each, Tensor) else each, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def check(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> None:
        """Raises MixedDevicesError where CUDA would refuse the devices of the arguments."""
        generator, ours = kwargs.get("generator"), [each for each in given if isinstance(each, OnDevice)]
        if generator is not None and (is_asked(kwargs.get("device")) or bool(ours)) != (
            generator._cdata in Generator.ours
        ):
            raise MixedDevicesError(f"{func} at {place()}: the generator is that of another device")
        away = [each for each in given if not isinstance(each, OnDevice)]
        if not ours or not away or func.overloadpacket in COPIES:
            return
        if func.overloadpacket in INDEXED:  # indices may lie on the CPU, and a value that is one number
            values = [each for each in args[2:] if isinstance(each, Tensor) and not isinstance(each, OnDevice)]
            fits = isinstance(args[0], OnDevice) and all(each.ndim == 0 for each in values)
        else:
            takes = torch.Tag.pointwise in func.tags or func.overloadpacket in TAKES_SCALARS
            written = {id(each) for each in changed(func, args)}
            fits = takes and all(each.ndim == 0 and id(each) not in written for each in away)
        if not fits:
            shapes = [f"{'cuda' if isinstance(each, OnDevice) else 'cpu'} {tuple(each.shape)}" for each in given]
            raise MixedDevicesError(f"{func} at {place()} mixes devices: {', '.join(shapes)}")

    def waits(self, func: Any, args: Any, kwargs: Any, given: Sequence[Tensor]) -> bool:
        """Whether the host waits for the device: it reads back, or needs a size that depends on data."""
        packet, ours = func.overloadpacket, any(isinstance(each, OnDevice) for each in given)
        if packet in COPIES:
            target = is_asked(kwargs.get("device")) if packet is aten._to_copy else isinstance(args[0], OnDevice)
            source = isinstance(args[0] if packet is aten._to_copy else args[1], OnDevice)
            asks = packet is not aten._to_copy or kwargs.get("device") is not None
            blocking = not (kwargs.get("non_blocking") or (packet is not aten._to_copy and args[2:3] == (True,)))
            return asks and target != source and blocking
        if not ours:
            return False
        if packet in INDEXED:
            indices = [each for each in args[1] if each is not None]
            return any(each.dtype in (torch.bool, torch.uint8) or not isinstance(each, OnDevice) for each in indices)
        known_size = packet is aten.repeat_interleave and kwargs.get("output_size") is not None
        tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        return bool(tags and not known_size) or str(func) == "torchvision.nms.default"


def changed(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """The arguments that an operator writes to."""
    return [
        value
        for value, about in zip(args, func._schema.arguments, strict=False)
        if about.alias_info is not None and about.alias_info.is_write and isinstance(value, Tensor)
    ]


# Autocast with the lists of CUDA

KEY = "AutocastPrivateUse1"
_kept: list[torch.library.Library] = []


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float32 if any(each.dtype == torch.float32 for each in tensors) else torch.bfloat16


def _cast(op: Any, choose: Callable[[Sequence[Tensor]], torch.dtype]) -> Callable[..., Any]:
    apart = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        dtype = choose(given)

        def cast(value: Any) -> Any:
            eligible = isinstance(value, OnDevice) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if eligible else value

        with torch._C._ExcludeDispatchKeyGuard(apart):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return kernel


def _install_autocast() -> None:
    rest, lists = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, KEY)
    choices = ((LOWER, lambda _: torch.bfloat16), (FLOAT32, lambda _: torch.float32), (WIDEST, _widest))
    for names, choose in choices:
        for packet in (getattr(aten, name) for name in names.split() if hasattr(aten, name)):
            for overload in packet.overloads():
                op = getattr(packet, overload)
                if "out" not in overload and "name" not in str(op._schema).lower().partition("(")[2]:
                    lists.impl(op, _cast(op, choose), KEY)
    _kept.extend((rest, lists))


# The rest of torch


class Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(NAME if device_type == "cuda" else device_type, *args, **kwargs)


def _inference_mode(mode: Any = True) -> Any:
    """Without gradients: views of wrapped tensors cannot be made in torch's own."""
    return torch.no_grad()(mode) if callable(mode) else torch.set_grad_enabled(torch.is_grad_enabled() and not mode)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _install() -> None:
    """For good: a process that has a stand-in has it to its end."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # what `torch.tensor` makes is copied to the device where it can be seen
    torch._has_compatible_shallow_copy_type = lambda a, b: isinstance(a, OnDevice) is isinstance(b, OnDevice)
    answers: dict[str, Any] = {"_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0,
        "get_device_name": "a stand-in", "synchronize": None, "reset_peak_memory_stats": None, "max_memory_allocated": 0,
        "max_memory_reserved": 0, "manual_seed_all": None, "is_bf16_supported": True, "empty_cache": None}  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.Tensor.pin_memory = lambda self, device=None: self  # type: ignore[method-assign,assignment]
    torch.autocast, torch.Generator = Autocast, Generator  # type: ignore[misc]
    torch.inference_mode = _inference_mode  # type: ignore[assignment,misc]
    _install_autocast()


def _watch(mode: StandIn) -> None:
    """Counts apart what each step of `lab.training.fit` waits for; the first of a training also makes things ready."""
    from lab import figures, run, training

    inner = training._train_step

    def step(at: int, *args: Any) -> Tensor:
        mode.step = Counter()
        try:
            return inner(at, *args)
        finally:
            mode.steps += [mode.step] if at else []
            mode.step = None

    def save(draw: figures.Draw, folder: Path, name: str) -> tuple[Path, Path, int, int]:
        with figures.using(figures.STYLES[0]):
            figures.plt.close(
                draw(figures.STYLES[0])
            )  # what it draws is on the CPU; writing it down takes longer than all the rest
        return folder / f"{name}.light.svg", folder / f"{name}.dark.svg", 0, 0

    training._train_step, run.save = step, save  # type: ignore[assignment]


def main(script: str, *arguments: str) -> None:
    _install()
    script = str(Path(script).resolve())
    SCRIPTS[:] = [Path(script).parent, Path(script).parent / "claims"]
    sys.path[0:1] = [str(SCRIPTS[0]), str(EXAMPLES)]
    sys.argv, mode = [script, *arguments], StandIn()
    with mode:
        _watch(mode)
        runpy.run_path(script, run_name="__main__")
    places = sum(mode.steps, Counter())
    report = {"steps": len(mode.steps), "most": max((each.total() for each in mode.steps), default=0), "places": places}
    Path(os.environ["STAND_IN"]).write_text(json.dumps(report), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
