# %% [markdown]
# # DETR: can a loss over the whole set take the place of non-maximum suppression?
#
# A transformer decoder turns 16 object queries into 16 boxes, all at once. The Hungarian algorithm matches them one to one
# with the objects before any loss is taken, so a second box on an object is wrong. Here is that idea, small enough to train
# in seconds; the experiments set it against decoders and heads that are rewarded for several boxes.
#
# | symbol (arXiv:2005.12872) | here | meaning |
# |---|---|---|
# | $y = \{(c_i, b_i)\}$ | `Targets` | class and box of each object of an image, padded with $\varnothing$ |
# | $\hat y$, $N$ | `Predictions`, `N` | one class distribution and one box for each of $N$ queries |
# | $\hat p_i(c)$ | `logits.softmax(-1)` | probability of class $c$; the last one is $\varnothing$, no object |
# | $\mathcal{L}_{match}$ | `matching_cost` | cost of each pair of prediction and object, (B, N, M) |
# | $\hat\sigma$ | `owner` | the object that each prediction is matched with, (B, N), $-1$ for $\varnothing$ |
# | $d$ | `width` | width of a token and of a query |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import detectors, weights
from lab.boxes import (
    Targets,
    generalized_iou,
    grid_points,
    sine_encoding,
    suppressed,
    targets_from_scenes,
    xyxy_from_cxcywh,
)
from lab.figures import Figure, Style, draw_boxes, panels, show_heat, show_image
from lab.run import Run
from lab.training import seed_everything
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation

L1, GIOU = 5.0, 2.0  # weights of the box losses, appendix A.4
RATE, EMPTY = 2e-3, 0.4  # learning rate, weight of the class loss of no object: see claims/detr.searches.json
PRIOR = 0.25  # side of the box around an anchor that an untrained head predicts, relative to the image
SYNCHRONISATIONS_PER_STEP = 2  # costs go to the Hungarian algorithm on the CPU, the assignment comes back


class Preset(NamedTuple):
    """Sizes of the network, N = side^2 queries, a factor on the rate. Scenes and steps are those that all detectors share."""

    width: int = 64
    heads: int = 4
    hidden: int = 128
    encoder: int = 1
    decoder: int = 3
    side: int = 4
    rate: float = 1.0


PRESETS = {"smoke": Preset(32, hidden=32), "quick": Preset(), "full": Preset(128, 4, 512, 3, 6, 10, rate=0.25)}

# %% [markdown]
# ## Match first, one to one
# Which prediction answers for which object? The cost of a pair weighs the probability of the right class against the
# distance of the boxes (Section 3.1), and the assignment $\hat\sigma$ of lowest total cost is taken (Eq. 1):
# $$\mathcal{L}_{match}(y_i, \hat y_j) = -\hat p_j(c_i) + \lambda_{L1} \lVert b_i - \hat b_j \rVert_1
# {} - \lambda_{iou} \mathrm{GIoU}(b_i, \hat b_j)$$
# Below, query 0 is the cheapest for both objects (`<` marks the assignment): only one of them gets it.


# %%
class Predictions(NamedTuple):
    """logits (..., N, K + 1), the last one for no object; boxes (..., N, 4) cxcywh relative to the image."""

    logits: Tensor
    boxes: Tensor


@torch.no_grad()
def matching_cost(predictions: Predictions, targets: Targets) -> Tensor:
    """The cost of every pair, (B, N, M); that of padding is infinite."""
    probabilities = predictions.logits.softmax(-1)  # (B, N, K + 1)
    N, K = probabilities.shape[1], probabilities.shape[2] - 1
    labels = targets.labels[:, None].expand(-1, N, -1)  # (B, N, M)
    ours, theirs = predictions.boxes[:, :, None], targets.boxes[:, None]  # (B, N, 1, 4), (B, 1, M, 4)
    cost = L1 * (ours - theirs).abs().sum(-1) - GIOU * generalized_iou(ours, theirs) - probabilities.gather(2, labels)
    return cost.masked_fill(labels == K, torch.inf)


def hungarian(cost: Tensor, copies: int = 1) -> Tensor:
    """Matches each object with `copies` different predictions (DETR: one) at the lowest total cost, Eq. 1.

    cost (B, N, M), infinite where there is no object -> owner (B, N). Raises ValueError where a cost is NaN.
    """
    costs, owner = cost.float().cpu(), torch.full(cost.shape[:2], -1)
    for mine, pairs in zip(owner.numpy(), costs.numpy(), strict=True):
        objects = (pairs[0] != torch.inf).nonzero()[0].repeat(copies)
        queries, columns = linear_sum_assignment(pairs[:, objects])
        mine[queries] = objects[columns]
    return owner.to(cost.device)


def one_to_one(predictions: Predictions, targets: Targets) -> Tensor:
    """owner (B, N): the object that each prediction is matched with, -1 for no object."""
    return hungarian(matching_cost(predictions, targets))


if __name__ == "__main__":
    run = Run.start("detr", pretrained=True)
    two = torch.tensor([[[0.3, 0.5, 0.2, 0.3], [0.45, 0.5, 0.2, 0.3]]])
    objects = Targets(two, torch.zeros(1, 2, dtype=torch.long))
    boxes = torch.tensor([[[0.38, 0.5, 0.2, 0.3], [0.3, 0.6, 0.3, 0.4], [0.8, 0.2, 0.2, 0.3]]])
    guess = Predictions(torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 2.0]]]), boxes)
    cost, owner = matching_cost(guess, objects)[0], one_to_one(guess, objects)[0]
    rows = [[f"{cost[j, i]:.2f}" + " <" * bool(owner[j] == i) for j in range(3)] for i in range(2)]
    run.show("matching", [{"": f"object {i}"} | {f"query {j}": row[j] for j in range(3)} for i, row in enumerate(rows)])

# %% [markdown]
# ## Then pay for the whole set
# Each prediction has a class to name, which is $\varnothing$ for most; the matched ones have a box to hit, too (Eq. 2). The
# class loss of $\varnothing$ weighs less, since it is the most frequent class:
# $$\mathcal{L} = \sum_i \left[ -\log \hat p_i(c_{\hat\sigma(i)}) + \mathbb{1}_{\{c_{\hat\sigma(i)} \neq \varnothing\}}
# \left( \lambda_{iou} (1 - \mathrm{GIoU}) + \lambda_{L1} \lVert b_{\hat\sigma(i)} - \hat b_i \rVert_1 \right) \right]$$
# A query that repeats a right box finds nothing new, is left without an object, and pays. That replaces suppression.


# %%
def set_loss(predictions: Predictions, targets: Targets, owner: Tensor, empty: float = EMPTY) -> Tensor:
    """Eq. 2 for a batch: the class loss is a weighted mean, the box loss a mean over matched predictions."""
    K, matched = predictions.logits.shape[2] - 1, owner >= 0  # (B, N)
    index = owner % (targets.labels.shape[1] + 1)  # -1, no object, becomes M: the place of one more padding
    labels = nn.functional.pad(targets.labels, (0, 1), value=K).gather(1, index)  # (B, N)
    boxes = nn.functional.pad(targets.boxes, (0, 0, 0, 1)).gather(1, index[..., None].expand(-1, -1, 4))  # (B, N, 4)
    surprise = nn.functional.cross_entropy(predictions.logits.mT, labels, reduction="none")  # (B, K + 1, N) -> (B, N)
    weight = torch.where(matched, 1.0, empty)
    distance = L1 * (predictions.boxes - boxes).abs().sum(-1) + GIOU * (1 - generalized_iou(predictions.boxes, boxes))
    return (weight * surprise).sum() / weight.sum() + (distance * matched).sum() / matched.sum().clamp(min=1)


if __name__ == "__main__":
    hits = torch.cat([objects.boxes, boxes[:, 2:]], 1)  # two objects, and a third query that says no object
    found = Predictions(torch.tensor([[[4.0, 0.0], [4.0, 0.0], [0.0, 4.0]]]), hits)
    again = Predictions(found.logits[:, [0, 1, 0]], hits[:, [0, 1, 0]])
    cases = {"once": found, "twice": again}
    paid = {name: set_loss(each, objects, one_to_one(each, objects)) for name, each in cases.items()}
    run.show("set_loss", [{"the first object is found": name, "loss": loss.item()} for name, loss in paid.items()])

# %% [markdown]
# ## Queries become boxes, all at once
# A convolutional backbone gives one map, whose positions are the tokens. Each query has an anchor on a grid, and starts from
# a learned vector plus the mean of the tokens around its anchor. In each decoder layer the queries look at each other, then at
# the tokens. All layers share one pair of heads, so the queries can be read, and trained, after each of them (Section 3.2).


# %%
class DETR(nn.Module):
    """Images (B, 3, H, W) -> predictions of N queries after every decoder layer: (L, B, N, K + 1) and (L, B, N, 4)."""

    def __init__(self, preset: Preset, benchmark: detectors.Benchmark) -> None:
        super().__init__()
        width, sizes = preset.width, (preset.width, preset.heads, preset.hidden)
        stages = [(3, width // 4, 2), (width // 4, width // 2, 2), (width // 2, width, 2), (width, width, 1)]
        self.backbone = nn.Sequential(*(Conv2dNormActivation(a, b, stride=stride) for a, b, stride in stages))
        encode, decode = (
            partial(each, *sizes, dropout=0.0, batch_first=True)
            for each in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        )
        self.encoder = nn.Sequential(*(encode() for _ in range(preset.encoder)))
        self.decoder = nn.ModuleList(decode() for _ in range(preset.decoder))
        self.place = nn.Buffer(sine_encoding(grid_points(benchmark.canvas // 8), width))  # (M, D)
        self.anchors = nn.Buffer(grid_points(preset.side))  # (N, 2)
        self.queries = nn.Parameter(sine_encoding(self.anchors, width))  # learned, but they start in order
        self.norm, self.class_head = nn.LayerNorm(width), nn.Linear(width, benchmark.classes + 1)
        self.box_head = MLP(width, [width, width, 4], inplace=None)

    def start(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The queries before the first layer, (B, N, D), and their anchors (N, 2), from tokens as a map (B, D, h, w)."""
        around = nn.functional.adaptive_avg_pool2d(tokens, round(len(self.anchors) ** 0.5)).flatten(2).mT
        return self.queries + around, self.anchors

    def decode(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """The queries (B, N, D) before the first and after every layer, their anchors, and the tokens (B, M, D)."""
        features = self.backbone(images)
        tokens = self.encoder(features.flatten(2).mT + self.place)  # (B, D, h, w) -> (B, h w, D)
        queries, anchors = self.start(tokens.mT.reshape(features.shape))
        states = [queries]
        for layer in self.decoder:
            states.append(layer(states[-1], tokens))
        return states, anchors, tokens

    def forward(self, images: Tensor) -> Predictions:
        states, anchors, _ = self.decode(images)
        z = self.norm(torch.stack(states[1:]))  # (L, B, N, D)
        start = torch.logit(torch.cat([anchors, torch.full_like(anchors, PRIOR)], -1))  # (N, 4)
        return Predictions(self.class_head(z).float(), (start + self.box_head(z).float()).sigmoid())

    def looks(self, images: Tensor) -> Tensor:
        """Where each query looks in the last layer, mean over heads: (B, N, h, w), which sums to one."""
        (*_, before, _), _, tokens = self.decode(images)
        layer: Any = self.decoder[-1]
        queries = layer.norm1(before + layer.self_attn(before, before, before)[0])
        return layer.multihead_attn(queries, tokens, tokens)[1].unflatten(2, (round(tokens.shape[1] ** 0.5), -1))


if __name__ == "__main__":
    preset, benchmark = PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    seed_everything(run.seeds[0])
    model = DETR(preset, benchmark)
    images = torch.rand(2, 3, benchmark.canvas, benchmark.canvas)
    said = model(images)
    shapes = {"class scores": said.logits, "boxes": said.boxes, "where queries look": model.looks(images)}
    run.show("shapes", [{"of two images": name, "shape": str(tuple(each.shape))} for name, each in shapes.items()])

# %% [markdown]
# ## Train it
# Digits pasted on photographs, all one class here. As in the paper, the learning rate is constant and then falls to a tenth.
# A prediction counts with the probability of its best class, and nothing is suppressed.

# %%
Assign = Callable[[Predictions, Targets], Tensor]


def loss_of(model: nn.Module, scenes: Any, assign: Assign = one_to_one, empty: float = EMPTY) -> Tensor:
    """The mean loss of all decoder layers, each matched anew (auxiliary losses, Section 3.2)."""
    logits, boxes = model(scenes.images)
    layers = Predictions(logits.flatten(0, 1), boxes.flatten(0, 1))  # (L, B, ...) -> (L B, ...)
    of_images = targets_from_scenes(scenes, logits.shape[-1] - 1)
    targets = Targets(of_images.boxes.repeat(len(logits), 1, 1), of_images.labels.repeat(len(logits), 1))
    return set_loss(layers, targets, assign(layers, targets), empty)


def detect(model: nn.Module, images: Tensor, suppress: bool = False) -> list[dict[str, Tensor]]:
    """Boxes in pixels, scores and labels of each image; where `suppress`, after NMS at an IoU of 0.5 within a class."""
    logits, boxes = (each[-1] for each in model(images))
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, N), (B, N)
    parts = zip(xyxy_from_cxcywh(boxes) * images.shape[-1], scores, labels, strict=True)
    found = [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in parts]
    return [suppressed(each) for each in found] if suppress else found


@cache
def train(run: Run, seed: int, rate: float, empty: float) -> detectors.Trained[Any]:
    """A detector for this seed, once for the pictures and the experiments."""
    seed_everything(seed)
    preset, benchmark, loss = PRESETS[run.preset], detectors.BENCHMARKS[run.preset], partial(loss_of, empty=empty)
    model, rate = DETR(preset, benchmark), preset.rate * rate
    return detectors.train(run, benchmark, seed, model, loss, detect, learning_rate=rate, what="DETR")


if __name__ == "__main__":
    trained = train(run, run.seeds[0], RATE, EMPTY)
    model = trained.model
    run.show("trained", [{"steps": step, "AP on test scenes (%)": ap} for step, ap in trained.curve[::3]])

# %% [markdown]
# ## One scene: who answers for which object, and from where?
# Left, the objects (solid) and the boxes matched with them (dotted), right, the cost of every pair. Where two objects want the
# same query, only one gets it. The second figure shows over which places of the image each of those queries takes its mean.


# %%
def draw_costs(style: Style, scene: Any, said: Predictions, targets: Targets) -> Figure:
    cost, owner = matching_cost(said, targets)[0], one_to_one(said, targets)[0]  # (N, M), (N,)
    queries = (owner >= 0).nonzero()[:, 0]
    figure, axes = panels(1, 2, width=5.4, height=2.5, width_ratios=[1, 1.6])
    show_image(axes[0, 0], scene.images[0], "objects, matched boxes")
    draw_boxes(axes[0, 0], scene.boxes[0])
    boxes = xyxy_from_cxcywh(said.boxes[0, queries]) * scene.images.shape[-1]
    draw_boxes(axes[0, 0], boxes, [str(int(query)) for query in queries], colour="white", linestyle=":")
    axes[0, 1].imshow(cost.T.numpy(), cmap=style.sequential, aspect="auto")
    axes[0, 1].plot(queries, owner[queries], "s", color="white", mec="black", ms=9, ls="none")
    axes[0, 1].set(title="cost of every pair", xlabel="query", ylabel="object", xticks=queries, yticks=owner[queries])
    axes[0, 1].grid(False)
    return figure


def draw_looks(style: Style, scene: Any, said: Predictions, targets: Targets, looks: Tensor) -> Figure:
    queries = (one_to_one(said, targets)[0] >= 0).nonzero()[:4, 0].tolist()
    figure, axes = panels(1, len(queries), width=5.4, height=1.7)
    for ax, query in zip(axes[0], queries, strict=True):
        show_heat(ax, scene.images[0], looks[query], f"query {query}")
        draw_boxes(ax, xyxy_from_cxcywh(said.boxes[0, query, None]) * scene.images.shape[-1])
    return figure


if __name__ == "__main__":
    full = max(range(len(trained.test)), key=lambda index: len(trained.test.boxes[index]))  # the fullest scene
    scene, looks = trained.test[full : full + 1], torch.empty(0)
    with torch.inference_mode():
        said = Predictions(*(each[-1].cpu() for each in model(scene.images.to(run.device))))
        looks = model.looks(scene.images.to(run.device))[0].cpu()
    about: dict[str, Any] = {"scene": scene, "said": said, "targets": targets_from_scenes(scene, benchmark.classes)}
    run.figure(
        "cost_matrix",
        partial(draw_costs, **about),
        caption="Squares mark the assignment of lowest total cost; every other query is trained to say: no object.",
        alt="A scene with its objects and the boxes matched with them, and a matrix of costs with one marked cell in each row.",
    )
    run.figure(
        "query_attention",
        partial(draw_looks, **about, looks=looks),
        caption="Where each matched query looks (bright: much), and its box.",
        alt="The scene once for each matched query, under a map of its attention, and the box that it predicts.",
    )

# %% [markdown]
# ## Your own image
# The published DETR-R50, from the hub of transformers, on a photograph of scikit-image or on yours. It needs no suppression.


# %%
def published(image: Any) -> weights.Boxes:
    from transformers import AutoImageProcessor, DetrForObjectDetection

    processor = AutoImageProcessor.from_pretrained("facebook/detr-resnet-50")
    network = DetrForObjectDetection.from_pretrained("facebook/detr-resnet-50").eval()
    raw = network(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(raw, threshold=0.7, target_sizes=[image.size[::-1]])
    return found["boxes"], [network.config.id2label[int(label)] for label in found["labels"]]


if __name__ == "__main__":
    weights.show_boxes(run, "facebook/detr-resnet-50", published, megabytes=170, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The backbone is a small convolutional network of stride 8, trained from scratch; in the paper, a ResNet of stride 32.
# - There are 16 queries instead of 100. Their boxes are predicted around the points of a grid, and each starts from a learned
#   vector plus the mean of the tokens around its point. In the paper queries start from zero and learn where to look over
#   hundreds of epochs.
# - Places are added to the tokens once, at the start, so that values carry them as well; in the paper they are added to the
#   queries and keys of every attention. The temperature of the sines is 20, since the map is small.
# - The loss is a mean over decoder layers, not a sum. There is no dropout and no augmentation.
# - Everything is trained for seconds on scenes of 64 px. What holds here explains a mechanism; it says nothing about COCO.
