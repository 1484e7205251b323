# %% [markdown]
# # LoRA: how little can change, and how much does that change?
#
# A pretrained network is frozen, and beside some of its matrices runs a product of two thin ones, which alone is
# trained. Here a small vision transformer that knows upright digits learns turned ones. The experiments compare ranks,
# whole fine-tuning and a new head alone, on a task nearby and on one far away.
#
# | symbol (card, arXiv:2106.09685) | here | meaning |
# |---|---|---|
# | $W_0$ | `base.weight` | pretrained weights of a linear layer, (d, k), frozen |
# | $A$, $B$ | `A`, `B` | the trained factors of each task, (T, r, k) and (T, d, r) |
# | $r$, $\alpha$ | `rank`, `ALPHA` | rank of the update, and its constant scale |
# | $\Delta W = \frac{\alpha}{r} B A$ | `update()` | the update, (d, k) |
# | T, N, D, K | | tasks, tokens, width, classes |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from lab.data import Split
from lab.data.tasks import CANVAS, CLASSES, TASKS, Task, task_images
from lab.figures import Figure, Style, panels, show_image
from lab.metrics import accuracy
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

ALPHA = 8.0
QV = ("q_proj", "v_proj")  # the matrices that the paper adapts
SYNCHRONISATIONS_PER_STEP = 0  # images and labels lie on the device


class Method(NamedTuple):
    """How a network is adapted: its name, the rank of the update (0 without one), which matrices, or every weight."""

    label: str
    rank: int = 0
    matrices: tuple[str, ...] = QV
    whole: bool = False


METHODS = {"full": Method("full", whole=True), "probe": Method("head only"), "r4": Method("LoRA, r = 4", 4)}
RATES = {"full": 2e-3, "probe": 0.512, "r4": 3.2e-2}  # peak learning rates, see claims/lora.searches.json
SOURCE_RATE = 3e-3  # of the pretraining, which all methods share


class Preset(NamedTuple):
    """Width and layers of the network, steps of pretraining and of each adaptation, labelled images of a task, batch."""

    width: int = 64
    layers: int = 2
    pretraining: int = 400
    steps: int = 120
    labels: int = 300
    batch: int = 32
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(pretraining=2, steps=2, labels=40),
    "quick": Preset(),
    "full": Preset(192, 6, 10_000, 2000, 1000, 128, 0.25),
}

# %% [markdown]
# ## The update
# $$h = W_0 x + \frac{\alpha}{r} B A x$$
# $A$ starts random and $B$ as zero, so at first nothing changes. Merging adds $BA$ to $W_0$; subtracting it brings
# $W_0$ back. One layer can hold the factors of several tasks. Unmerged, each image of a batch may take those of its own.


# %%
class LowRank(nn.Module):
    """A frozen linear layer (..., k) -> (..., d), and trained updates of low rank (Eq. 3), one for each of T tasks."""

    def __init__(self, base: nn.Linear, rank: int, tasks: int = 1) -> None:
        super().__init__()
        self.base, self.scale, device = base.requires_grad_(False), ALPHA / rank, base.weight.device
        self.A = nn.Parameter(torch.randn(tasks, rank, base.in_features, device=device) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(tasks, base.out_features, rank, device=device))
        self.task: int | Tensor = 0  # of the whole batch, or of each image (batch,)
        self.merged = False

    def update(self, task: int = 0) -> Tensor:
        """Delta W, (d, k)."""
        return self.scale * self.B[task] @ self.A[task]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, N, k) -> (batch, N, d)."""
        h = self.base(x)
        if self.merged:
            return h
        A, B = self.A[self.task], self.B[self.task]  # (r, k) and (d, r), or one of each for each image
        return h + self.scale * (x @ A.mT) @ B.mT

    @torch.no_grad()
    def merge(self, sign: int = 1) -> None:
        """Adds the update of the first task to the frozen weights; takes it out again with a sign of -1."""
        self.base.weight += sign * self.update()
        self.merged = sign > 0


if __name__ == "__main__":
    run = Run.start("lora", pretrained=False)
    preset, device = PRESETS[run.preset], run.device
    layer, x = LowRank(nn.Linear(768, 768, bias=False), 8), torch.randn(1, 4, 768)
    change = (layer(x) - layer.base(x)).abs().max().item()
    parts = {"W_0, frozen": layer.base.weight, "A": layer.A, "B": layer.B, "update": layer.update()}
    run.show(
        "shapes",
        [{"one matrix of a ViT-B": n, "shape": str(tuple(e.shape)), "weights": e.numel()} for n, e in parts.items()],
    )
    run.show("start", f"At the start the update changes the output by {change:g}.")

# %% [markdown]
# ## Into a network
# The layers of a name are wrapped where they stand; all else is frozen. The network has the layers of DINOv2. A new task
# gets a new head, which every method trains.


# %%
def adapt(model: nn.Module, rank: int, matrices: tuple[str, ...] = QV, tasks: int = 1) -> nn.Module:
    """Freezes a network and wraps its linear layers of these names; in place."""
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in matrices and isinstance(child, nn.Linear):
                setattr(parent, name, LowRank(child, rank, tasks))
    return model


def updates(model: nn.Module) -> list[LowRank]:
    """All wrapped layers."""
    return [each for each in model.modules() if isinstance(each, LowRank)]


def merge(model: nn.Module, sign: int = 1) -> None:
    for each in updates(model):
        each.merge(sign)


class Classifier(nn.Module):
    """A small transformer with the layers of DINOv2, and a linear head: (B, 1, 16, 16) -> (B, K)."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        shape = {"hidden_size": preset.width, "num_hidden_layers": preset.layers, "num_attention_heads": 2}
        config = Dinov2Config(**shape, image_size=CANVAS, patch_size=4, num_channels=1, initializer_range=0.1)
        self.backbone = Dinov2Model(config)
        self.head = nn.Linear(preset.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).pooler_output)  # of the class token


def prepared(source: Classifier, method: Method) -> Classifier:
    """A copy of a pretrained network with a new head, of which the method's weights are trainable."""
    model = copy.deepcopy(source).requires_grad_(method.whole)
    if method.rank:
        adapt(model.backbone, method.rank, method.matrices)
    model.head.reset_parameters()
    model.head.requires_grad_(True)
    return model


if __name__ == "__main__":
    small = Classifier(preset)
    counts = {m.label: count_parameters(prepared(small, m), trainable_only=True) for m in METHODS.values()}
    run.show(
        "trained_weights", [{"method": name, "trained weights, head included": count} for name, count in counts.items()]
    )

# %% [markdown]
# ## Three tasks
# *Source*: handwritten digits, shifted by a few pixels. *Near*: the same turned by a quarter. *Far*: the pixels within
# each patch reordered, always in one way, and black and white swapped, so that what was learned about strokes inside a
# patch is void.


# %%
def draw_tasks(style: Style) -> Figure:
    figure, axes = panels(3, 6, width=5.4, height=3.0)
    for row, task in zip(axes, TASKS, strict=True):
        for ax, image in zip(row, task_images(task, "test", 0)[0], strict=False):
            show_image(ax, image)
        row[0].set_title(task, loc="left")
    return figure


if __name__ == "__main__":
    run.figure(
        "tasks", draw_tasks, caption="Test images of the three tasks; the same digits in each row.",
        alt="Three rows of six small digits: upright, turned by a quarter, and with the pixels of each patch scrambled.",
    )  # fmt: skip

# %% [markdown]
# ## Pretrain, then adapt
# Once with all labels on the source; then a copy for each method, with few labelled images of the new task.


# %%
def train(run: Run, model: Classifier, data: tuple[Tensor, Tensor], steps: int, rate: float, seed: int) -> None:
    """Trains what is trainable, in place, on images and labels that lie on the device."""

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    preset, (images, labels) = PRESETS[run.preset], data
    batches = minibatches((images.to(run.device), labels.to(run.device)), preset.batch, steps, seed)
    fit(model, batches, loss, steps=steps, learning_rate=rate * preset.rate, device=run.device)


def pretrained(run: Run, seed: int) -> Classifier:
    seed_everything(seed)
    preset = PRESETS[run.preset]
    model = Classifier(preset)
    train(run, model, task_images("source", "train", seed, 4000), preset.pretraining, SOURCE_RATE, seed)
    return model


def adapted(run: Run, source: Classifier, method: Method, task: Task, seed: int, rate: float) -> Classifier:
    seed_everything(seed)
    preset, model = PRESETS[run.preset], prepared(source, method)
    train(run, model, task_images(task, "train", seed, preset.labels), preset.steps, rate, seed)
    return model


@torch.inference_mode()
def accuracy_on(model: nn.Module, task: Task, split: Split = "test") -> float:
    """Accuracy in %, on the same images for all networks."""
    images, labels = task_images(task, split, 0)
    return 100 * accuracy(model(images.to(next(model.parameters()).device)).cpu(), labels)


if __name__ == "__main__":
    seed = run.seeds[0]
    source = pretrained(run, seed)
    models = {name: adapted(run, source, method, "near", seed, RATES[name]) for name, method in METHODS.items()}
    rows = [{"network": "pretrained, digits as they are", "right (%)": accuracy_on(source, "source")}]
    rows += [
        {"network": f"{METHODS[n].label}, turned digits", "right (%)": accuracy_on(m, "near")}
        for n, m in models.items()
    ]
    run.show("trained", rows)

# %% [markdown]
# ## The update of a trained layer
# $BA$ fills the whole matrix, though only the thin factors were trained. Its singular values end at the rank; those of
# the change that full fine-tuning makes to the same matrix do not end, but fall.


# %%
def values_of(model: Classifier) -> Any:
    """The layer of the first block that makes the values."""
    return model.backbone.encoder.layer[0].attention.v_proj


def draw_update(style: Style, layer: LowRank, whole: Tensor) -> Figure:
    """W_0, the factors and their product; below, singular values beside those of a change (d, k) by full fine-tuning."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[0.85, 1.3], width_ratios=[1, 0.3, 1, 1])
    update, rank = layer.update().detach().cpu(), layer.A.shape[1]
    pictures = (("$W_0$, frozen", layer.base.weight, "gray"), ("$B$", layer.B[0], style.diverging),
                (f"$A$, of rank {rank}", layer.A[0], style.diverging), ("update $BA$", update, style.diverging))  # fmt: skip
    for column, (title, values, colours) in enumerate(pictures):
        limit = values.detach().abs().max().item()
        show_image(
            figure.add_subplot(grid[0, column]), values.detach().cpu(), title, cmap=colours, vmin=-limit, vmax=limit
        )
    ax = figure.add_subplot(grid[1, :])
    for change, label, marker in ((update, "LoRA", "o"), (whole, "full fine-tuning", "s")):
        singular = torch.linalg.svdvals(change)[:16]
        ax.plot(range(1, len(singular) + 1), singular / singular[0], marker=marker, markersize=5, label=label)
    ax.set(
        xlabel="index of the singular value", ylabel="size, largest = 1", ylim=(-0.04, 1.05), xticks=(1, 4, 8, 12, 16)
    )
    ax.legend(loc="upper right")
    return figure


if __name__ == "__main__":
    whole = (values_of(models["full"]).weight - values_of(source).weight).detach().cpu()
    run.figure(
        "update",
        partial(draw_update, layer=values_of(models["r4"]), whole=whole),
        caption="The value matrix of the first block, adapted to turned digits: the frozen weights, the two thin factors that "
        "are trained, and their product. Beyond its rank the update has no singular values; the change of full fine-tuning is "
        "not cut off.",
        alt="A square matrix W0, a narrow matrix B, a flat matrix A and their square product; below, a chart of singular values "
        "that end at four for LoRA and fall slowly for full fine-tuning.",
    )

# %% [markdown]
# ## Merged, and taken out again
# A merged matrix has the old shape, so inference costs what it did. The outputs stay, but for rounding.


# %%
@torch.no_grad()
def difference(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Largest difference of outputs, for the spread of the outputs."""
    a, b = model(images), other(images)
    return float((a - b).abs().max() / a.std())


if __name__ == "__main__":
    images = task_images("near", "test", 0)[0][:64].to(device)
    other, found = copy.deepcopy(models["r4"]), {}
    for name, sign in (("merged", 1), ("taken out again", -1)):
        merge(other, sign)
        found[name] = difference(models["r4"], other, images)
    run.show("merging", [{"update": name, "largest difference of outputs": value} for name, value in found.items()])
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Images instead of language, and a network of two layers that was pretrained for seconds. It tests the mechanism and
#   says nothing about published accuracies. With so small a width, rank 16 is a quarter of full rank.
# - The new head is trained too, in every method, as PEFT's vision example does.
# - $A$ is Gaussian with the variance of one over its inputs; $\alpha$ is 8 for all ranks, and there is no dropout.
# - No cell with published weights: the paper's adapters are for language models.
