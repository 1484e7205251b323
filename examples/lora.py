# %% [markdown]
# # LoRA: how little can change, and how much does that change?
#
# A pretrained network is frozen, and beside some of its matrices runs a product of two thin ones, which alone is trained. A small
# vision transformer that knows upright digits is adapted to a task nearby and to one far away: whole, with a new head
# alone, and with low-rank updates of several ranks. The same update is put into the published sizes of DINOv2 to count
# what it trains, stores and keeps in memory.
#
# | symbol (card, arXiv:2106.09685) | here | meaning |
# |---|---|---|
# | $W_0$ | `base.weight` | pretrained weights of a linear layer, (d, k), frozen |
# | $A$, $B$ | `A`, `B` | the trained factors of each task, (T, r, k) and (T, d, r) |
# | $r$, $\alpha$ | `rank`, `alpha` | rank of the update, and its constant scale |
# | $\Delta W = \frac{\alpha}{r} B A$ | `update()` | the update, (d, k) |
# | T, N, D, K | | tasks, tokens, width, classes |

# %%
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lab.data import Split
from lab.data.digits import shifted_digits
from lab.figures import Style, panels, seed_bars, show_image
from lab.metrics import accuracy, timed
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

CANVAS, CLASSES = 16, 10
ALPHA = 8.0
QV = ("q_proj", "v_proj")  # the matrices that the paper adapts
Task = Literal["source", "near", "far"]
NEW: tuple[Task, Task] = ("near", "far")
TASKS: Mapping[Task, str] = {"source": "digits", "near": "near: turned digits", "far": "far: scrambled patches"}


@dataclass(frozen=True)
class Method:
    """How a network is adapted.

    Attributes:
        label: in figures.
        learning_rate: at its peak; the better of this and a third of it on validation images of seed 100 (for LoRA, of rank 4).
        rank: of the update; 0 without one.
        matrices: names of the linear layers that are updated.
        whole: trains every weight.
    """

    label: str
    learning_rate: float
    rank: int = 0
    matrices: tuple[str, ...] = QV
    whole: bool = False


METHODS: Mapping[str, Method] = {
    "full": Method("full", 3e-3, whole=True),
    "probe": Method("head\nonly", 3e-2),
    "r1": Method("LoRA\nr = 1", 1.5e-2, 1),
    "r4": Method("LoRA\nr = 4", 1.5e-2, 4),
    "r16": Method("LoRA\nr = 16", 1.5e-2, 16),
    "q8": Method("r = 8,\nqueries", 1.5e-2, 8, ("q_proj",)),  # as many weights as r4
}


@dataclass(frozen=True)
class Preset:
    """Sizes of a run: width and layers of the network, steps of pretraining and of each adaptation, labelled images of a task."""

    width: int = 64
    layers: int = 2
    pretraining: int = 400
    steps: int = 120
    labels: int = 300
    batch: int = 32
    timed: int = 10
    images: int = 8


PRESETS = {
    "smoke": Preset(width=16, layers=1, pretraining=2, steps=2, timed=1, images=1),
    "quick": Preset(),
    "full": Preset(width=192, layers=6, pretraining=10_000, steps=2000, labels=1000, batch=128, timed=50, images=32),
}

# %% [markdown]
# ## The update
# $$h = W_0 x + \frac{\alpha}{r} B A x$$
# $A$ starts random and $B$ as zero, so at first nothing changes. Merging adds $BA$ to $W_0$; subtracting it brings $W_0$ back.
# One layer can hold the factors of several tasks. Unmerged, each image of a batch may take those of its own task.


# %%
class LowRank(nn.Module):
    """A frozen linear layer and a trained update of low rank (Eq. 3).

    Args:
        base: the layer, (..., k) -> (..., d).
        rank: r.
        alpha: the update is scaled by alpha / r.
        tasks: T, number of updates that are held side by side.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float = ALPHA, tasks: int = 1) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        device = base.weight.device
        self.A = nn.Parameter(torch.randn(tasks, rank, base.in_features, device=device) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(tasks, base.out_features, rank, device=device))
        self.task: int | Tensor = 0  # of the whole batch, or of each image (batch,)
        self.merged = False

    def update(self, task: int = 0) -> Tensor:
        """Delta W, (d, k)."""
        return self.scale * self.B[task] @ self.A[task]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, N, k) -> (batch, N, d)."""
        h: Tensor = self.base(x)
        if self.merged:
            return h
        A, B = self.A[self.task], self.B[self.task]  # (r, k) and (d, r), or one of each for each image
        return h + self.scale * (x @ A.transpose(-1, -2)) @ B.transpose(-1, -2)

    @torch.no_grad()
    def merge(self, sign: int = 1) -> None:
        """Adds the update of the first task to the frozen weights; takes it out again with a sign of -1."""
        self.base.weight += sign * self.update()
        self.merged = sign > 0


def adapt(model: nn.Module, rank: int, matrices: Sequence[str] = QV, tasks: int = 1) -> nn.Module:
    """Freezes a network and wraps its linear layers of these names; in place."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in matrices and isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank, tasks=tasks))
    return model


def updates(model: nn.Module) -> list[LowRank]:
    """All wrapped layers."""
    return [each for each in model.modules() if isinstance(each, LowRank)]


def merge(model: nn.Module, sign: int = 1) -> None:
    for each in updates(model):
        each.merge(sign)


# %% [markdown]
# ## Three tasks
# *Source*: handwritten digits, shifted by a few pixels. *Near*: the same turned by a quarter. *Far*: the pixels within each
# patch reordered, always in one way, and black and white swapped, so that what was learned about strokes inside a patch is
# void. A network is pretrained on the source with labels and then adapted with few labelled images of another task.


# %%
def task_images(task: Task, split: Split, seed: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 16, 16) and labels (n,)."""
    data = shifted_digits(split, 13, CANVAS, seed, count=count)
    images = data.images
    if task == "near":
        images = images.rot90(1, (-2, -1)).contiguous()
    if task == "far":
        order = torch.randperm(16, generator=torch.Generator().manual_seed(7))
        patches = functional.unfold(1 - images, 4, stride=4)[:, order]  # (n, 16 pixels of a patch, patches)
        images = functional.fold(patches, (CANVAS, CANVAS), 4, stride=4)
    return images, data.labels


class Classifier(nn.Module):
    """A small transformer with the layers of DINOv2, and a linear head: (B, 1, 16, 16) -> (B, K)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        shape = {
            "hidden_size": preset.width,
            "num_hidden_layers": preset.layers,
            "num_attention_heads": 2,
            "mlp_ratio": 2,
        }
        config = Dinov2Config(**shape, image_size=CANVAS, patch_size=4, num_channels=1, initializer_range=0.1)
        self.backbone = Dinov2Model(config)
        self.head = nn.Linear(preset.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.backbone(images).pooler_output)  # of the class token
        return scores


def cross_entropy(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(model(images), labels)


@torch.no_grad()
def accuracy_on(model: nn.Module, task: Task, seed: int, split: Split = "test") -> float:
    """Accuracy in %."""
    images, labels = task_images(task, split, seed)
    return 100 * accuracy(model(images.to(next(model.parameters()).device)).cpu(), labels)


def pretrained(preset: Preset, seed: int, device: torch.device) -> Classifier:
    seed_everything(seed)
    model, data = Classifier(preset), task_images("source", "train", seed, 4000)
    batches = minibatches(data, 2 * preset.batch, preset.pretraining, seed)
    fit(model, batches, cross_entropy, steps=preset.pretraining, learning_rate=3e-3, device=device)
    return model


def prepared(source: Classifier, method: Method) -> Classifier:
    """A copy of a pretrained network with a new head, of which the method's weights are trainable."""
    model = copy.deepcopy(source).requires_grad_(method.whole)
    if method.rank:
        adapt(model.backbone, method.rank, method.matrices)
    model.to(next(source.parameters()).device)
    model.head.reset_parameters()
    model.head.requires_grad_(True)
    return model


def adapted(source: Classifier, method: Method, task: Task, preset: Preset, seed: int) -> Classifier:
    seed_everything(seed)
    model, device = prepared(source, method), next(source.parameters()).device
    batches = minibatches(task_images(task, "train", seed, preset.labels), preset.batch, preset.steps, seed)
    fit(model, batches, cross_entropy, steps=preset.steps, learning_rate=method.learning_rate, device=device)
    return model


def old_accuracy(model: Classifier, source: Classifier, seed: int) -> float:
    """Accuracy on the source of an adapted backbone with the head that it was pretrained with."""
    back = copy.deepcopy(model)
    back.head = source.head
    return accuracy_on(back, "source", seed)


@dataclass(frozen=True)
class Trained:
    """Of one seed: the pretrained network, those adapted by method and task, and their accuracies in %."""

    source: Classifier
    models: Mapping[tuple[str, Task], Classifier]
    new: Mapping[tuple[str, Task], float]
    old: Mapping[tuple[str, Task], float]


def train(preset: Preset, seed: int, device: torch.device) -> Trained:
    source = pretrained(preset, seed, device)
    models = {
        (name, task): adapted(source, method, task, preset, seed) for name, method in METHODS.items() for task in NEW
    }
    new = {(name, task): accuracy_on(model, task, seed) for (name, task), model in models.items()}
    return Trained(source, models, new, {key: old_accuracy(model, source, seed) for key, model in models.items()})


# %% [markdown]
# ## The update of a trained layer
# The values of the first block, for the far task. $BA$ fills the whole matrix, though only the thin factors were trained. Its
# singular values end at the rank. Those of the change that full fine-tuning makes to the same matrix do not end, but fall.


# %%
def matrix_of(model: Classifier) -> Any:
    return model.backbone.encoder.layer[0].attention.v_proj


def draw_update(style: Style, layer: LowRank, whole: Tensor) -> Figure:
    """The factors, their product, and singular values beside those of the change (d, k) of full fine-tuning."""
    width, rank = layer.A.shape[-1], layer.A.shape[1]
    figure, axes = panels(1, 4, height=2.5, width_ratios=[0.35, 1, 1, 1.25])
    update = layer.update().detach().cpu()
    pictures = (("B", layer.B[0]), ("A", layer.A[0]), ("update BA", update))
    for ax, (title, values) in zip(axes[0], pictures, strict=False):
        limit = values.detach().abs().max().item()
        show_image(ax, values.detach().cpu(), title, cmap=style.diverging, vmin=-limit, vmax=limit)
    axes[0, 1].set_title(f"A ({rank} × {width})")
    for values, label, marker in ((update, "LoRA", "o"), (whole, "full", "s")):
        singular = torch.linalg.svdvals(values)[:12]
        axes[0, 3].plot(range(1, len(singular) + 1), singular / singular[0], marker=marker, markersize=4, label=label)
    axes[0, 3].set(title="singular values", xlabel="index", ylim=(-0.03, 1.05), xticks=(1, 4, 8, 12))
    axes[0, 3].legend(loc="upper right")
    return figure


def show_update(run: Run, trained: Trained) -> None:
    before, whole = matrix_of(trained.source).weight, matrix_of(trained.models["full", "far"]).weight
    run.figure(
        "update",
        partial(draw_update, layer=matrix_of(trained.models["r4", "far"]), whole=(whole - before).detach().cpu()),
        caption="The value matrix of the first block, adapted to the far task: the two thin factors that are trained, their "
        "product, and singular values, largest set to 1. Beyond its rank the update has none; the change of full fine-tuning is "
        "not cut off.",
        alt="A narrow matrix B, a flat matrix A, their square product, and a chart of singular values that end at four for LoRA "
        "and fall slowly for full fine-tuning.",
    )


# %% [markdown]
# ## Accuracy: whole, head alone, and by rank
# All with the same images, steps and batches; the learning rate is each method's own. *r = 8, queries* has as many trained
# weights as *r = 4*, which is on queries and values. What is left of the source is measured with the old head.


# %%
def draw_accuracy(style: Style, all_trained: Sequence[Trained], kind: Literal["new", "old"]) -> Figure:
    figure, axes = panels(1, 2, height=3.3, sharey=True)
    for ax, task in zip(axes[0], NEW, strict=True):
        values = [[getattr(each, kind)[name, task] for each in all_trained] for name in METHODS]
        colours = [style.cycle[0] if method.rank else style.cycle[1] for method in METHODS.values()]
        seed_bars(ax, [method.label for method in METHODS.values()], values, colours)
        ax.set(title=TASKS[task], ylim=(0, 100))
        ax.tick_params(axis="x", labelsize=7.5)
    axes[0, 0].set_ylabel("accuracy on the " + ("new task (%)" if kind == "new" else "source (%)"))
    return figure


def transfer(run: Run, preset: Preset, all_trained: Sequence[Trained]) -> None:
    experiment = run.experiment(
        "transfer",
        question="How accurate is LoRA by rank, beside full fine-tuning and a head on frozen features, near and far?",
        data=f"{preset.labels} labelled images of {CANVAS} px of each task, 300 to test; pretrained on upright digits",
        parameters=count_parameters(all_trained[0].source),
        steps=preset.steps,
    )
    for name, method in METHODS.items():
        label = method.label.replace("\n", " ")
        for task in NEW:
            values = [each.new[name, task] for each in all_trained]
            experiment.result(f"{task}_{name}", values, unit="%", meaning=f"Accuracy of {label}, {TASKS[task]}")
        trainable = count_parameters(all_trained[0].models[name, "near"], trainable_only=True)
        meaning = f"Trained weights of {label}, its head included"
        experiment.result(f"trainable_{name}", [trainable], unit="", meaning=meaning, exact=True)
    pairs = (("full", "r16"), ("full", "r4"), ("r4", "probe"), ("r16", "r1"), ("r4", "q8"))
    for task in NEW:
        for a, b in pairs:
            gap = [each.new[a, task] - each.new[b, task] for each in all_trained]
            experiment.result(
                f"{task}_gap_{a}_{b}", gap, unit="points", meaning=f"Accuracy {TASKS[task]}, {a} minus {b}"
            )
    wider = [
        each.new["full", "far"] - each.new["r4", "far"] - each.new["full", "near"] + each.new["r4", "near"]
        for each in all_trained
    ]
    meaning = "How much further LoRA of rank 4 is behind full fine-tuning on the far task than on the near one"
    experiment.result("gap_far_minus_near", wider, unit="points", meaning=meaning)
    experiment.figure(
        "accuracy",
        partial(draw_accuracy, all_trained=all_trained, kind="new"),
        caption="Accuracy on the new task; dots are seeds. Left the near task, right the far one, where what was learned about "
        "the inside of a patch no longer holds.",
        alt="Two groups of bars, near and far task: full fine-tuning, head only, LoRA of ranks 1, 4 and 16, and of "
        "rank 8 on queries.",
    )


# %%
def forgetting(run: Run, preset: Preset, all_trained: Sequence[Trained]) -> None:
    experiment = run.experiment(
        "forgetting",
        question="What is left of the source after the network was adapted?",
        data="Upright digits, 300 to test, with the adapted backbone and the head of the pretraining",
        parameters=count_parameters(all_trained[0].source),
        steps=preset.steps,
    )
    before = [accuracy_on(each.source, "source", seed) for each, seed in zip(all_trained, run.seeds, strict=True)]
    experiment.result("source_before", before, unit="%", meaning="Accuracy on the source before any adaptation")
    for task in NEW:
        for name in ("full", "r4"):
            values = [each.old[name, task] for each in all_trained]
            experiment.result(
                f"source_after_{task}_{name}", values, unit="%", meaning=f"Source, after {task} by {name}"
            )
        gap = [each.old["r4", task] - each.old["full", task] for each in all_trained]
        meaning = f"Accuracy on the source after the {task} task, LoRA of rank 4 minus full fine-tuning"
        experiment.result(f"kept_gap_{task}", gap, unit="points", meaning=meaning)
    experiment.figure(
        "forgetting",
        partial(draw_accuracy, all_trained=all_trained, kind="old"),
        caption="Accuracy on the source, with the old head, after the backbone was adapted to the near or the far task. With the "
        "head alone the backbone does not change, so nothing is lost.",
        alt="Two groups of bars of the accuracy on the source after near and far adaptation, for the six methods.",
    )


# %% [markdown]
# ## Merged, swapped, mixed
# The trained updates of both tasks in one network. Merging must not change the output, and unmerging must bring the old one
# back. Unmerged, one batch holds images of both tasks; merged, it can be right for one of them only.


# %%
@torch.no_grad()
def difference(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Largest difference of outputs, for the spread of the outputs."""
    a, b = model(images), other(images)
    return float((a - b).abs().max() / a.std())


def shared(trained: Trained, rank: str = "r4") -> Classifier:
    """One backbone that holds the updates of the near and the far task."""
    model = copy.deepcopy(trained.source)
    adapt(model.backbone, METHODS[rank].rank, tasks=2)
    for index, task in enumerate(NEW):
        for ours, theirs in zip(updates(model), updates(trained.models[rank, task]), strict=True):
            ours.A.data[index], ours.B.data[index] = theirs.A.data[0], theirs.B.data[0]
    return model


@torch.no_grad()
def mixed_error(trained: Trained, images: Tensor) -> tuple[float, float]:
    """Features of a batch of both tasks against each task's own network: unmerged, and merged with the near task."""
    model, half = shared(trained), len(images) // 2
    near, far = (trained.models["r4", task].backbone(images).pooler_output for task in NEW)
    own = torch.cat([near[:half], far[half:]])
    for each in updates(model):
        each.task = (torch.arange(len(images), device=images.device) >= half).long()
    unmerged = model.backbone(images).pooler_output
    merge(model)
    merged = model.backbone(images).pooler_output
    return float((unmerged - own).abs().max() / own.std()), float((merged - own).abs().max() / own.std())


def merging(run: Run, all_trained: Sequence[Trained]) -> None:
    experiment = run.experiment(
        "merging",
        question="Does merging leave the output as it is, and can one network hold several tasks?",
        data="64 test images, networks of rank 4 from the experiments above",
        parameters=count_parameters(all_trained[0].models["r4", "near"]),
    )
    values: dict[str, list[float]] = {"merge": [], "unmerge": [], "start": [], "mixed": [], "mixed_merged": []}
    for trained, seed in zip(all_trained, run.seeds, strict=True):
        images = task_images("near", "test", seed)[0][:64].to(run.device)
        model = trained.models["r4", "near"]
        other = copy.deepcopy(model)
        merge(other)
        values["merge"].append(difference(model, other, images))
        merge(other, -1)
        values["unmerge"].append(difference(model, other, images))
        fresh = copy.deepcopy(trained.source)
        adapt(fresh.backbone, 4)
        values["start"].append(difference(trained.source, fresh, images))
        mixed, merged = mixed_error(trained, images)
        values["mixed"].append(mixed)
        values["mixed_merged"].append(merged)
    meanings = {
        "merge": "merged against unmerged",
        "unmerge": "after merging and unmerging, against before",
        "start": "at the start of training, against the network without updates",
        "mixed": "a batch of two tasks, unmerged, against each task's own network",
        "mixed_merged": "a batch of two tasks, merged with the first, against each task's own network",
    }
    for name, meaning in meanings.items():
        text = f"Largest difference over the spread of the outputs, {meaning}"
        experiment.result(f"difference_{name}", values[name], unit="", meaning=text)


# %% [markdown]
# ## The published sizes of DINOv2
# Built on the meta device, which knows shapes but holds no values. Trained weights must agree with the paper's
# $|\Theta| = 2 \times \hat L \times d \times r$. Memory is what a training step in float32 holds: weights, gradients, AdamW's two
# moments, and what autograd keeps for the backward pass, with a fused attention kernel.


# %%
SIZES: Mapping[str, tuple[int, int, int]] = {
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "g": (1536, 40, 24),
}
PARTS = ("weights", "gradients", "moments", "activations")


def dinov2(size: str) -> Any:
    """DINOv2 of `SIZES` without trained weights, on the device that torch builds on; ViT-g has a gated MLP."""
    width, layers, heads = SIZES[size]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return Dinov2Model(Dinov2Config(**shape, image_size=518, patch_size=14, use_swiglu_ffn=size == "g"))


class FusedKernel(TorchFunctionMode):
    """Sends attention to the CPU's fused kernel; on the meta device torch would write the scores out all the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def kept_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes kept for the backward pass; a storage that several operations keep counts once, and weights do not count."""
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FusedKernel():
        model(images)
    return sum(storage.nbytes() for storage in kept.values())


def training_memory(model: nn.Module, images: int) -> dict[str, float]:
    """GB (10^9 bytes) of `PARTS` for a step with so many images of 224 px."""
    trainable = count_parameters(model, trainable_only=True)
    kept = kept_bytes(model, torch.empty(images, 3, 224, 224, device="meta"))
    counts = (4 * count_parameters(model), 4 * trainable, 8 * trainable, kept)
    return {part: count / 1e9 for part, count in zip(PARTS, counts, strict=True)}


def gmacs(model: nn.Module) -> float:
    """GMACs of one image of 224 px."""
    frozen = model.requires_grad_(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        frozen(torch.empty(1, 3, 224, 224, device="meta"))
    return float(counter.get_total_flops()) / 2e9


def draw_memory(style: Style, memory: Mapping[str, Mapping[str, float]]) -> Figure:
    figure, ((ax,),) = panels(1, 1, height=2.6)
    left = [0.0] * len(memory)
    for part, colour, hatch in zip(PARTS, style.cycle, ("", "//", "..", "xx"), strict=False):
        values = [each[part] for each in memory.values()]
        ax.barh(list(memory), values, left=left, label=part, color=colour, hatch=hatch, edgecolor=style.page)
        left = [a + b for a, b in zip(left, values, strict=True)]
    ax.invert_yaxis()
    ax.set(xlabel="GB for a training step")
    ax.grid(False, axis="y")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def published(run: Run, preset: Preset) -> None:
    experiment = run.experiment(
        "published",
        question="What does LoRA train, store and keep in memory in the published sizes of DINOv2?",
        data=f"DINOv2 S, B, L and g on the meta device; memory for {preset.images} images of 224 px in float32",
    )
    for size, (width, layers, _) in SIZES.items():
        with torch.device("meta"):
            model = dinov2(size)
            total = count_parameters(model)
            adapt(model, 8)
        trainable, formula = count_parameters(model, trainable_only=True), 2 * (2 * layers) * width * 8
        of = f"DINOv2 ViT-{size}, rank 8 on queries and values"
        counted = {"trainable": trainable / 1e6, "share": trainable / total, "formula": trainable / formula}
        units = {"trainable": "M", "share": "", "formula": ""}
        meanings = {"trainable": "trained weights", "share": "part of the weights", "formula": "count over the formula"}
        for name, value in counted.items():
            label, meaning = f"{name}_{size}_r8", f"{of}: {meanings[name]}"
            experiment.result(label, [value], unit=units[name], meaning=meaning, exact=True)
        meaning = f"{of}: bytes of a task over those of a full copy"
        experiment.result(f"stored_{size}_r8", [trainable / total], unit="", meaning=meaning, exact=True)
    memory = training_memories(preset)
    sums = {name: sum(parts.values()) for name, parts in memory.items()}
    for name, value in sums.items():
        label, meaning = name.lower().replace(", rank 8", "").replace(" ", "_"), f"ViT-g: memory of a step, {name}"
        experiment.result(f"memory_{label}", [value], unit="GB", meaning=meaning, exact=True)
    ratio, meaning = [sums["LoRA, rank 8"] / sums["full"]], "ViT-g: memory of a training step, LoRA over full"
    experiment.result("memory_lora_over_full", ratio, unit="", meaning=meaning, exact=True)
    moments = [memory["LoRA, rank 8"]["moments"] / memory["full"]["moments"]]
    experiment.result("moments_lora_over_full", moments, unit="", meaning="ViT-g: AdamW's moments alone", exact=True)
    experiment.figure(
        "memory",
        partial(draw_memory, memory=memory),
        caption=f"Memory of a training step of DINOv2 ViT-g with {preset.images} images of 224 px in float32. LoRA frees "
        "gradients and moments; the weights stay, and so does most of what is kept for the backward pass.",
        alt="Stacked horizontal bars for full fine-tuning, LoRA and head only: weights, gradients, moments and activations.",
    )


def training_memories(preset: Preset) -> dict[str, dict[str, float]]:
    """Of ViT-g, by method; of a head alone, the backbone runs without gradients."""
    with torch.device("meta"):
        memory = {"full": training_memory(dinov2("g"), preset.images)}
        memory["LoRA, rank 8"] = training_memory(adapt(dinov2("g"), 8), preset.images)
        memory["head only"] = training_memory(dinov2("g").requires_grad_(False), preset.images)
    return memory


# %% [markdown]
# ## The price of a branch
# Multiply-accumulates of ViT-B without updates, with merged and with unmerged ones, counted; and the time of ViT-S, measured in
# turns. A merged matrix has the old shape, so it costs what it did.


# %%
def draw_latency(style: Style, times: Mapping[str, Sequence[float]]) -> Figure:
    figure, ((ax,),) = panels(1, 1, height=2.8, width=5.0)
    seed_bars(ax, list(times), list(times.values()))
    ax.set(ylabel="ms for an image of 224 px")
    return figure


@torch.inference_mode()
def latencies(run: Run, preset: Preset) -> dict[str, list[float]]:
    """Milliseconds of ViT-S, in turns so that a busy moment meets all; one value for each seed."""
    merged = adapt(dinov2("s").eval(), 8)
    models = {"without": dinov2("s").eval(), "merged": merged, "unmerged": adapt(dinov2("s").eval(), 8)}
    merge(merged)
    image = torch.rand(1, 3, 224, 224, device=run.device)
    times: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.to(run.device)(image)
    for _ in run.seeds:
        rounds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(preset.timed):
            for name, model in models.items():
                rounds[name].append(timed(partial(model, image), repeats=1, warmup=0, device=run.device).median)
        for name, values in rounds.items():
            times[name].append(min(values))
    return times


def price(run: Run, preset: Preset) -> None:
    experiment = run.experiment(
        "price",
        question="What does an update cost at inference, merged and unmerged?",
        data="DINOv2 ViT-B counted and ViT-S timed, one image of 224 px, rank 8 on queries and values",
    )
    build: Callable[[], nn.Module] = partial(dinov2, "b")
    with torch.device("meta"):
        base, merged, unmerged = build(), adapt(build(), 8), adapt(build(), 8)
        merge(merged)
    without = gmacs(base)
    for name, model in (("merged", merged), ("unmerged", unmerged)):
        extra, meaning = [100 * (gmacs(model) / without - 1)], f"ViT-B: additional MACs of {name} updates"
        experiment.result(f"extra_macs_{name}", extra, unit="%", meaning=meaning, exact=True)
    times = latencies(run, preset)
    for name, values in times.items():
        meaning = f"ViT-S: time of an image of 224 px, updates {name}; best of {preset.timed} turns"
        experiment.result(f"latency_{name}", values, unit="ms", meaning=meaning)
    for name in ("merged", "unmerged"):
        ratio = [a / b for a, b in zip(times[name], times["without"], strict=True)]
        experiment.result(
            f"slower_{name}", ratio, unit="x", meaning=f"ViT-S: time with {name} updates over that without"
        )
    experiment.figure(
        "latency",
        partial(draw_latency, times=times),
        caption=f"Time of one image through ViT-S on this device ({run.device.type}), without updates, with merged and with "
        "unmerged ones; dots are repeats.",
        alt="Three bars of milliseconds: without updates, merged updates, unmerged updates.",
    )


# %% [markdown]
# ## Unlike the paper
#
# - Images instead of language, and a network of two layers that was pretrained for a minute. It tests the mechanism and says
#   nothing about published accuracies. With so small a width, rank 16 is a quarter of full rank.
# - The new head is trained too, in every method, as PEFT's vision example does.
# - $A$ is Gaussian with the variance of one over its inputs; $\alpha$ is 8 for all ranks, and there is no dropout.
# - Memory counts what a step holds by definition, not what an allocator reserves, and the temporary memory of the forward
#   pass is left out.


# %%
def main(argv: Sequence[str] | None = None) -> None:
    run = Run.start("lora", argv=argv)
    if run.settings.weights == "pretrained":
        raise SystemExit("This example pretrains its own small network; published sizes are only counted and timed.")
    preset = PRESETS[run.preset]
    all_trained = [train(preset, seed, run.device) for seed in run.progress(run.seeds, what="training")]
    show_update(run, all_trained[0])
    transfer(run, preset, all_trained)
    forgetting(run, preset, all_trained)
    merging(run, all_trained)
    published(run, preset)
    price(run, preset)
    run.finish()


if __name__ == "__main__":
    main()
