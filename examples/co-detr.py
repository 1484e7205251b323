# %% [markdown]
# # Co-DETR: do helpers that match one object with many places make a one-to-one detector better?
#
# A DETR matches each object with one query, so a picture with two objects teaches two queries. Co-DETR adds, for training only,
# a classic head on the encoder that answers for each object at many places, and hands those places to the decoder as further
# queries. In use both are thrown away. Here is that idea, small enough to train in seconds, on coloured shapes; the experiment
# sets it against the plain detector, and against the same helper that answers at one place for each object.
#
# | symbol (arXiv:2211.12860) | here | meaning |
# |---|---|---|
# | $\mathcal{F}_*$ | `maps` | the encoder's tokens as a map, (B, D, h, w) |
# | $\{pos\}$, $B_i^{pos}$ | `places`, `anchors` | places that answer for an object, (B, M, C), and the boxes around them |
# | $Q_i$ | `positive_queries` | the queries made of them, (B, M C, D) |
# | $\mathcal{L}^{enc}$, $\mathcal{L}^{dec}$ | | losses of the helper, and of queries after each layer of the decoder |
# | | `Found` | what queries or places say: logits (B, N, K) and boxes (B, N, 4) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import GIOU, L1, hungarian
from lab import sampling, shapes
from lab.boxes import Targets, generalized_iou, grid_points, sine_encoding
from lab.data.named import NAMES, SIDE, named
from lab.figures import Figure, Style, panels, show_heat, show_image
from lab.run import Run
from lab.training import count_parameters, fit, minibatches, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation, sigmoid_focal_loss

Found = shapes.Found  # logits (B, N, K) and boxes (B, N, 4) cxcywh relative to the picture
K = shapes.K  # classes: the five shapes, in any colour
RATE = 8e-3  # peak learning rate, see claims/co-detr.searches.json
CLASS = 2.0  # weight of the class in the cost of a match, and of its loss beside those of the boxes
HELPER = 2.0  # weight of the helper's own loss, lambda_2; that of its queries, lambda_1, is 1 (Section 4.1)
PRIOR = 0.3  # side of the box around a place, relative to the picture
COPIES = 4  # places that answer for an object: 2 x 2 of stride 4 lie within the smallest things
SYNCHRONISATIONS_PER_STEP = 2  # costs go to the Hungarian algorithm on the CPU, the assignment comes back


class Preset(NamedTuple):
    """Steps and scenes in a step, D, width of the feed-forward networks, layers of the decoder, side of the grid of queries,
    numbers of training and test scenes, factor on the rate."""

    steps: int = 150
    batch: int = 12
    width: int = 32
    hidden: int = 64
    layers: int = 2
    side: int = 3
    scenes: tuple[int, int] = (1000, 200)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(3, 4, 24, 24, scenes=(16, 24)),
    "quick": Preset(),
    "full": Preset(8000, 64, 192, 768, 6, 5, (20_000, 1000), 0.25),
}

# %% [markdown]
# ## A detector with one query for each object
# The detector is a Deformable DETR: an encoder over the tokens of the picture, learned queries with learned first boxes, and
# layers that look at the picture around the boxes so far, and correct them. Matching is one to one, as in DETR.


# %%
class Heads(nn.Module):
    """x (B, N, D) and the logits of a box for each, (B, N, 4) -> scores, and a box as a correction of the other one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score, self.box = nn.Linear(width, K), MLP(width, [width, width, 4], inplace=None)
        nn.init.constant_(self.score.bias, -3.0)  # most of what is read holds nothing
        nn.init.zeros_(self.box[-2].weight)

    def forward(self, x: Tensor, start: Tensor) -> Found:
        return Found(self.score(x).float(), (start + self.box(x).float()).sigmoid())


class Detector(nn.Module):
    """Images (B, 3, S, S) -> what the queries say after each layer."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width = preset.width
        stages = [(3, width // 3, 2), (width // 3, width, 2), (width, width, 1)]
        self.backbone = nn.Sequential(*(Conv2dNormActivation(a, b, stride=stride) for a, b, stride in stages))
        self.place = nn.Buffer(sine_encoding(grid_points(SIDE // 4), width))  # (P, D)
        self.encoder = nn.TransformerEncoderLayer(width, 4, preset.hidden, 0.0, batch_first=True)
        self.decoder = nn.ModuleList(sampling.BoxDecoderLayer(width, 4, preset.hidden, 1) for _ in range(preset.layers))
        points = grid_points(preset.side)
        self.queries = nn.Parameter(sine_encoding(points, width))  # learned, but they start in order
        self.first = nn.Parameter(torch.logit(torch.cat([points, torch.full_like(points, PRIOR)], -1)))
        self.heads = Heads(width)

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's tokens as a map, (B, D, h, w)."""
        features = self.backbone(images)
        return self.encoder(features.flatten(2).mT + self.place).mT.reshape(features.shape)

    def decode(self, maps: Tensor, queries: Tensor, boxes: Tensor) -> list[Found]:
        """What queries (B, N, D) that start from boxes (B, N, 4) say after each layer."""
        said = []
        for layer in self.decoder:
            queries = layer(queries, boxes, [maps])
            said.append(self.heads(queries, torch.logit(boxes, eps=1e-4)))
            boxes = said[-1].boxes.detach()
        return said

    def own(self, maps: Tensor) -> list[Found]:
        """What the detector's own queries say, with or without helpers."""
        queries, boxes = (each.expand(len(maps), -1, -1) for each in (self.queries, self.first.sigmoid()))
        return self.decode(maps, queries, boxes)

    def forward(self, images: Tensor) -> list[Found]:
        return self.own(self.encode(images))


@torch.no_grad()
def one_to_one(found: Found, targets: Targets) -> Tensor:
    """owner (B, N): the object that each box is matched with, -1 for none."""
    return hungarian(shapes.matching_cost(found, targets, L1, GIOU, CLASS))


if __name__ == "__main__":
    run = Run.start("co-detr", pretrained=False)
    preset = PRESETS[run.preset]
    said = Detector(preset)(torch.rand(2, 3, SIDE, SIDE))
    run.show("shapes", [{"of two pictures": f"after layer {index + 1}", "scores": str(tuple(each.logits.shape)),
                         "boxes": str(tuple(each.boxes.shape))} for index, each in enumerate(said)])  # fmt: skip

# %% [markdown]
# ## A helper that answers at many places
# On the encoder's map sits a dense head with a rule of its own which places answer for which object: here the four nearest to its
# middle, the first step of ATSS. So all of them have to be told from the background, and have to know their box. The control
# is the same head with the nearest place alone.


# %%
def nearest(points: Tensor, targets: Targets, copies: int) -> tuple[Tensor, Tensor]:
    """Places (B, M, COPIES) that are nearest to each object, the nearest `copies` of them again and again; and owner (B, P),
    the object that each place answers for, -1 for none."""
    gap = (points[:, None] - targets.boxes[:, None, :, :2]).square().sum(-1)  # (B, P, M)
    gap = gap.masked_fill(targets.labels[:, None] == K, torch.inf)
    order = gap.argsort(1)  # (B, P, M)
    places = order[:, :copies].mT.repeat(1, 1, COPIES // copies)
    closest, owner = gap.masked_fill(order.argsort(1) >= copies, torch.inf).min(-1)
    return places, owner.masked_fill(closest.isposinf(), -1)


if __name__ == "__main__":
    scenes = named("test", 2, run.seeds[0], range(len(NAMES)))
    points, labels = grid_points(SIDE // 4), torch.where(scenes.labels == len(NAMES), K, 0)
    counts = {copies: (nearest(points, Targets(scenes.boxes, labels), copies)[1] >= 0).sum(1) for copies in (1, COPIES)}
    run.show("positives", [{"scene": scene, "objects": int((labels[scene] < K).sum())}
                           | {f"places that learn from them, {copies} each": int(count[scene])
                              for copies, count in counts.items()} for scene in range(2)])  # fmt: skip

# %% [markdown]
# ## Its places become queries whose answer is known
# The boxes around those places, and what the encoder says there, enter the decoder as queries of a group of their own (Eq. 3).
# Each knows its object, so nothing is matched, and the decoder gets as many more examples of what a right query looks like:
# $$Q_i = \mathrm{Linear}(\mathrm{PE}(B_i^{pos})) + \mathrm{Linear}(E(\mathcal{F}_*, \{pos\}))$$
# Over the layers $l$, all losses add up (Eq. 5): $\mathcal{L} = \sum_l (\mathcal{L}^{dec}_l + \lambda_1 \mathcal{L}^{dec}_{1,l})
# + \lambda_2 \mathcal{L}^{enc}$.


# %%
class Helped(nn.Module):
    """A detector with what helps to train it: images (B, 3, S, S) -> what the queries of the detector say after each layer."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.detector, self.helper = Detector(preset), Heads(preset.width)
        self.to_query = nn.Linear(preset.width, preset.width)
        self.to_place = MLP(4, [preset.width, preset.width], inplace=None)
        self.points = nn.Buffer(grid_points(SIDE // 4))  # (P, 2)
        self.anchors = nn.Buffer(torch.cat([self.points, torch.full_like(self.points, PRIOR)], -1))

    def forward(self, images: Tensor) -> list[Found]:
        return self.detector(images)

    def dense(self, maps: Tensor) -> Found:
        """What the helper says at every place, (B, P, ...)."""
        return self.helper(maps.flatten(2).mT, torch.logit(self.anchors).expand(len(maps), -1, -1))

    def positive_queries(self, maps: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, M C, D) and boxes (B, M C, 4) of places (B, M, C)."""
        index, boxes = places.flatten(1), self.anchors[places.flatten(1)]
        there = maps.flatten(2).mT.gather(1, index[..., None].expand(-1, -1, maps.shape[1]))
        return self.to_place(boxes) + self.to_query(there), boxes


def set_loss(found: Found, targets: Targets, owner: Tensor, count: Tensor | None = None) -> Tensor:
    """Class and box losses for each match, where the owner is known; only what counts (B, N) pays, all where None."""
    matched, index = owner >= 0, owner.clamp(min=0)  # (B, N)
    box = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    label = targets.labels.gather(1, index).where(matched, K)
    surprise = sigmoid_focal_loss(found.logits, nn.functional.one_hot(label, K + 1)[..., :-1].float()).sum(-1)  # (B, N)
    distance = L1 * (found.boxes - box).abs().sum(-1) + GIOU * (1 - generalized_iou(found.boxes, box))
    surprise = surprise if count is None else surprise * count
    return (CLASS * surprise + distance * matched).sum() / matched.sum().clamp(min=1)


def stacked(layers: list[Found], targets: Targets) -> tuple[Found, Targets]:
    """The answers of all layers as one batch, (L B, N, ...), and their targets."""
    together = Found(*(torch.cat(part) for part in zip(*layers, strict=True)))
    return together, Targets(*(each.repeat(len(layers), *[1] * (each.ndim - 1)) for each in targets))


def loss_of(model: Helped, images: Tensor, boxes: Tensor, labels: Tensor, *, copies: int = COPIES) -> Tensor:
    """The loss of a batch; without helper where `copies` is 0."""
    targets, maps = Targets(boxes, labels), model.detector.encode(images)
    layers, repeated = stacked(model.detector.own(maps), targets)
    loss = set_loss(layers, repeated, one_to_one(layers, repeated))
    if not copies:
        return loss
    places, owner = nearest(model.points, targets, copies)
    helped = HELPER * set_loss(model.dense(maps), targets, owner)
    extra, repeated = stacked(model.detector.decode(maps, *model.positive_queries(maps, places)), targets)
    known = torch.arange(labels.shape[1], device=labels.device).repeat_interleave(COPIES)  # (M C,)
    known = known.expand(len(repeated.labels), -1)
    there = repeated.labels.gather(1, known) < K
    return loss + helped + set_loss(extra, repeated, known.where(there, -1), there)


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = Helped(preset)
    maps = model.detector.encode(scenes.images)
    queries, _ = model.positive_queries(maps, nearest(points, Targets(scenes.boxes, labels), COPIES)[0])
    run.show("queries", [{"queries": "of the detector", "shape": str(tuple(model.detector.queries.shape))},
                         {"queries": "of the helper, two pictures", "shape": str(tuple(queries.shape))}])  # fmt: skip

# %% [markdown]
# ## Train it with the helper, use it without
# Shapes on dimmed photographs, one to three in a scene. What is used in the end is the detector alone: the helper's weights can
# be deleted, and the boxes stay the same to the last bit.


# %%
@cache
def train(run: Run, seed: int, rate: float, copies: int = COPIES) -> Helped:
    """A detector for this seed, and its helper, which answers for each object at `copies` places, or not at all (0)."""
    preset, device = PRESETS[run.preset], run.device
    seed_everything(seed)
    model, scenes = Helped(preset), named("train", preset.scenes[0], seed, range(len(NAMES)))
    data = [each.to(device) for each in (scenes.images, *shapes.things(scenes))]
    batches, loss = minibatches(data, preset.batch, preset.steps, seed), partial(loss_of, copies=copies)
    fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)
    return model


@torch.inference_mode()
def look(model: nn.Module, images: Tensor) -> Found:
    """What the last layer finds in pictures, on the CPU."""
    device = next(model.parameters()).device
    parts = [model(part.to(device))[-1] for part in images.split(100)]
    return Found(*(torch.cat([each.cpu() for each in part]) for part in zip(*parts, strict=True)))


if __name__ == "__main__":
    model = train(run, run.seeds[0], RATE)
    test = named("test", preset.scenes[1], run.seeds[0], range(len(NAMES)))
    helped, alone = look(model, test.images), look(model.detector, test.images)
    rows = {"with the helper's weights": (model, helped), "the detector alone": (model.detector, alone)}
    run.show("in_use", [{"used": name, "parameters": count_parameters(each), "AP (%)": shapes.ap(found, test)}
                        for name, (each, found) in rows.items()])  # fmt: skip

# %% [markdown]
# ## Who learns from a scene, and what the encoder knows then
# The first test scenes with three things: the places that learn from them if one answers for each, those of the helper, and how
# sure the helper is of each place after training, which only the encoder's tokens can tell it.


# %%
def draw_scenes(style: Style, scenes: Any, sure: Tensor, points: Tensor) -> Figure:
    figure, axes = panels(2, 3, width=5.4, height=3.8)
    for row, image in enumerate(scenes.images):
        for ax, copies, title in zip(axes[row], (1, COPIES), ("one place each", "the helper"), strict=False):
            show_image(ax, image, "" if row else title)
            (owner,) = nearest(points, Targets(*(each[row, None] for each in shapes.things(scenes))), copies)[1]
            at = points[owner >= 0] * SIDE - 0.5
            ax.plot(*at.T, "o", color="#F2D34B", markeredgecolor="black", markersize=6, linestyle="none")
        show_heat(axes[row, 2], image, sure[row], "" if row else "after training")
    return figure


if __name__ == "__main__":
    full = (test.labels < len(NAMES)).all(1).nonzero()[:2, 0]
    shown = type(test)(*(each[full] for each in test))
    with torch.inference_mode():
        said = model.dense(model.detector.encode(shown.images.to(run.device)))
    sure = said.logits.sigmoid().amax(-1).unflatten(1, (SIDE // 4, -1)).cpu()
    run.figure("positives", partial(draw_scenes, scenes=shown, sure=sure, points=points),
               caption="A one-to-one rule lets one place answer for each thing; the helper, in training only, four. Right, how "
               "sure the helper is of each place after training (bright: much), on the first test scenes with three things.",
               alt="Two scenes of three coloured shapes: with one dot on each, with four dots on each, and under a map that is "
               "bright where the shapes are.")  # fmt: skip
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - One helper instead of two. It has no tower of convolutions, and takes the nearest places without the threshold of ATSS.
# - One map of stride 4 from three convolutions, trained from scratch; full attention in the encoder, deformable in the decoder,
#   two layers with one pair of heads, nine queries. There is no denoising and no augmentation.
# - Queries of the helper start from the box of one size around their place, and all of them are positive; in the paper some say
#   background.
# - No library that this project uses publishes weights of Co-DETR, so there is no picture of yours here; the card names the
#   checkpoints of MMDetection.
# - Scenes of 48 px with shapes of one size range: what holds here explains a mechanism; it says nothing about COCO.
