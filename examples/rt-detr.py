# %% [markdown]
# # RT-DETR: which places of a picture should become queries, and how many layers must refine them?
#
# RT-DETR starts from the places of the picture that score best, and refines them layer by layer. Two of its ideas are small
# enough to train in seconds, on coloured shapes: in training a score learns how well its box fits, so that the best score
# means the best box, too; and each layer gives boxes, so that the last ones can be left out. The experiments set the first
# against a plain class score, and ask what the second costs.
#
# | symbol (arXiv:2304.08069) | here | meaning |
# |---|---|---|
# | $S_4$, $S_5$ | `fine`, `coarse` | maps of the backbone, (B, D, H, W), the second half as large |
# | $O$ | `maps` | the maps after the hybrid encoder |
# | $\hat{X}$ | `places` | all places of both maps, (B, P, D) |
# | $\mathcal{P}(\hat{X})$, $\mathcal{C}(\hat{X})$ | `overlap`, `logits` | how well a box fits (IoU), how sure its class is |
# | | `Found` | what places or queries say: logits (B, N, K) and boxes (B, N, 4) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import GIOU, L1, hungarian
from lab import sampling, shapes, training, weights
from lab.boxes import Targets, generalized_iou, grid_points, sine_encoding, xyxy_from_cxcywh
from lab.data.named import NAMES, SIDE, named
from lab.figures import Figure, Style, draw_boxes, panels, show_heat, show_image
from lab.run import Run
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation, box_iou

Found = shapes.Found  # logits (B, N, K) and boxes (B, N, 4) cxcywh relative to the picture
K = shapes.K  # classes: the five shapes, in any colour
RATE = 4e-3  # peak learning rate, see claims/rt-detr.searches.json
CLASS = 2.0  # weight of the class in the cost of a match, and of its loss beside those of the boxes
SURE = 0.5  # lowest score of a box that is shown
PRIOR = 0.3  # side of the box that an untrained head predicts, relative to the picture
SYNCHRONISATIONS_PER_STEP = 6  # each matching asks the CPU and waits: places, layers, in the claims a second score


class Preset(NamedTuple):
    """Steps and scenes in a step, D, width of the feed-forward networks, layers of the decoder, queries, numbers of training and
    test scenes, factor on the rate."""

    steps: int = 150
    batch: int = 12
    width: int = 32
    hidden: int = 64
    layers: int = 3
    queries: int = 6
    scenes: tuple[int, int] = (1000, 200)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(3, 4, 24, 24, scenes=(16, 24)),
    "quick": Preset(),
    "full": Preset(8000, 64, 192, 768, 6, 24, (20_000, 1000), 0.25),
}

# %% [markdown]
# ## Attention where the map is small, convolutions between the maps
# Attention over all maps is what made earlier DETRs slow. Here only the places of the coarsest map look at each other (AIFI);
# then convolutions carry what they found to the finer map and back (CCFF, Eq. 1):
# $$F_5 = \mathrm{AIFI}(S_5), \qquad O = \mathrm{CCFF}(\{S_4, F_5\})$$


# %%
class HybridEncoder(nn.Module):
    """fine (B, D, 2 h, 2 w) and coarse (B, D, h, w) -> the same shapes, each with what the other one knows."""

    def __init__(self, width: int, hidden: int, side: int) -> None:
        super().__init__()
        self.within = nn.TransformerEncoderLayer(width, 4, hidden, 0.0, batch_first=True)
        self.place = nn.Buffer(sine_encoding(grid_points(side), width))  # (h w, D)
        self.to_fine, self.to_coarse = (Conv2dNormActivation(width, width, stride=stride) for stride in (1, 2))

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.within(coarse.flatten(2).mT + self.place)  # (B, h w, D)
        coarse = tokens.mT.reshape(coarse.shape)
        fine = self.to_fine(fine + nn.functional.interpolate(coarse, scale_factor=2.0))
        return fine, coarse + self.to_coarse(fine)


if __name__ == "__main__":
    run = Run.start("rt-detr", pretrained=True)
    preset = PRESETS[run.preset]
    fine, coarse = (torch.rand(1, preset.width, SIDE // stride, SIDE // stride) for stride in (4, 8))
    maps = HybridEncoder(preset.width, preset.hidden, SIDE // 8)(fine, coarse)
    counts = [each.shape[2] * each.shape[3] for each in maps]
    run.show("encoder", [{"attention": name, "places": count, "pairs": count**2}
                         for name, count in (("over both maps", sum(counts)), ("AIFI", counts[1]))])  # fmt: skip

# %% [markdown]
# ## A score that knows its box
# A plain class score says what is there, not whether its box fits, and the best score may have a poor box. RT-DETR makes the
# disagreement small (Eq. 2) by what the score has to be: the overlap of its box with the object (Eq. 3), as in VarifocalNet:
# $$\mathcal{U}(\hat{X}) = \lVert \mathcal{P}(\hat{X}) - \mathcal{C}(\hat{X}) \rVert$$
# Below, what the score of a right class pays where the box fits well, and where it does not.


# %%
@torch.no_grad()
def one_to_one(found: Found, targets: Targets) -> Tensor:
    """owner (B, N): the object that each box is matched with, as in DETR, -1 for none."""
    return hungarian(shapes.matching_cost(found, targets, L1, GIOU, CLASS))


def score_loss(logits: Tensor, right: Tensor, goal: Tensor) -> Tensor:
    """The varifocal loss, summed: logits and right, one-hot, (B, N, K); goal (B, N), what a matched score should be."""
    target = right * goal[..., None]
    weight = torch.where(right > 0, goal[..., None], 0.75 * logits.detach().sigmoid() ** 2)
    return nn.functional.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")


def set_loss(found: Found, targets: Targets, by_overlap: bool = True) -> Tensor:
    """Score and box losses for each object; where not `by_overlap`, a matched score should be 1, whatever its box."""
    owner = one_to_one(found, targets)
    matched, index = owner >= 0, owner.clamp(min=0)  # (B, N)
    box = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    label = targets.labels.gather(1, index).where(matched, K)
    right = nn.functional.one_hot(label, K + 1)[..., :-1].float()
    overlap = box_iou(found.boxes.detach(), targets.boxes, fmt="cxcywh").gather(2, index[..., None])[..., 0]
    score = score_loss(found.logits, right, overlap if by_overlap else torch.ones_like(overlap))
    distance = L1 * (found.boxes - box).abs().sum(-1) + GIOU * (1 - generalized_iou(found.boxes, box))
    return (CLASS * score + (distance * matched).sum()) / matched.sum().clamp(min=1)


if __name__ == "__main__":
    paid = [{"overlap of the box": overlap} | {
        f"score {score}": score_loss(torch.tensor([[[score]]]).logit(), torch.ones(1, 1, 1), torch.tensor([[overlap]])).item()
        for score in (0.3, 0.6, 0.9)} for overlap in (0.3, 0.6, 0.9)]  # fmt: skip
    run.show("loss", paid)

# %% [markdown]
# ## The best places become queries, and each layer gives boxes
# Every place of the maps has scores and a box. The places with the best scores become the queries, their boxes the first guess.
# Each layer of the decoder looks at the picture around the boxes so far, and corrects them. All of them are trained to be
# read, so the decoder may stop after any.


# %%
class RTDETR(nn.Module):
    """Images (B, 3, S, S) -> what all places say, then what the queries say after each layer; the latter start from some of
    the former."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width, self.queries = preset.width, preset.queries
        first = [Conv2dNormActivation(a, b, stride=2) for a, b in ((3, width // 3), (width // 3, width))]
        self.fine, self.coarse = nn.Sequential(*first), Conv2dNormActivation(width, width, stride=2)
        self.encoder = HybridEncoder(width, preset.hidden, SIDE // 8)
        self.decoder = nn.ModuleList(sampling.BoxDecoderLayer(width, 4, preset.hidden, 2) for _ in range(preset.layers))
        sides = (SIDE // 4, SIDE // 8)
        points = torch.cat([grid_points(side) for side in sides])  # (P, 2)
        self.start = nn.Buffer(torch.logit(torch.cat([points, torch.full_like(points, PRIOR)], -1)))  # (P, 4)
        self.ready = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        scores = [nn.Linear(width, K) for _ in range(2)]  # of places, and of queries after any layer
        boxes = [MLP(width, [width, width, 4], inplace=None) for _ in range(2)]
        for score, box in zip(scores, boxes, strict=True):
            nn.init.constant_(score.bias, -3.0)  # most places hold nothing
            nn.init.zeros_(box[-2].weight)  # so that a layer starts from the boxes of the one before
        self.scores, self.boxes = nn.ModuleList(scores), nn.ModuleList(boxes)

    def read(self, x: Tensor, start: Tensor, head: int) -> Found:
        """What x (B, N, D) says: scores, and a box as a correction of the logits of another one, start (B, N, 4)."""
        return Found(self.scores[head](x).float(), (start + self.boxes[head](x).float()).sigmoid())

    def select(self, said: Found) -> Tensor:
        """The places that become queries, (B, N)."""
        return said.logits.amax(-1).topk(self.queries).indices

    def encode(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The maps after the encoder, and all their places (B, P, D)."""
        fine = self.fine(images)
        maps = self.encoder(fine, self.coarse(fine))
        return maps, self.ready(torch.cat([each.flatten(2).mT for each in maps], 1))

    def refine(self, maps: tuple[Tensor, Tensor], places: Tensor, boxes: Tensor, best: Tensor) -> list[Found]:
        """What queries say after each layer that start from the places `best` (B, N), with their boxes of (B, P, 4)."""
        # As in the paper, the decoder learns to use the places, not to change them.
        queries, boxes = (
            each.detach().gather(1, best[..., None].expand(-1, -1, each.shape[-1])) for each in (places, boxes)
        )
        said = []
        for layer in self.decoder:
            queries = layer(queries, boxes, maps)
            said.append(self.read(queries, torch.logit(boxes, eps=1e-4), 1))
            boxes = said[-1].boxes.detach()
        return said

    def forward(self, images: Tensor) -> list[Found]:
        maps, places = self.encode(images)
        said = self.read(places, self.start.expand(len(images), -1, -1), 0)
        return [said, *self.refine(maps, places, said.boxes, self.select(said))]


if __name__ == "__main__":
    training.seed_everything(run.seeds[0])
    said = RTDETR(preset)(torch.rand(2, 3, SIDE, SIDE))
    run.show("shapes", [{"of two pictures": f"after layer {index}" if index else "all places",
                         "scores": str(tuple(each.logits.shape)), "boxes": str(tuple(each.boxes.shape))}
                        for index, each in enumerate(said)])  # fmt: skip

# %% [markdown]
# ## Train it
# Shapes on dimmed photographs, one to three in a scene. Places and each layer are matched and pay by themselves. Read after
# fewer layers, the same network gives the boxes of a shorter one.


# %%
Model = Callable[[Tensor], list[Found]]


def loss_of(
    model: Model, images: Tensor, boxes: Tensor, labels: Tensor, *, paying: tuple[int, ...] | None = None
) -> Tensor:
    """Places and the layers that are `paying` (all where None) pay alike."""
    places, *layers = model(images)
    chosen = [layers[each] for each in paying or range(len(layers))]
    together = Found(*(torch.cat(part) for part in zip(*chosen, strict=True)))  # (L B, ...)
    repeated = Targets(boxes.repeat(len(chosen), 1, 1), labels.repeat(len(chosen), 1))
    return set_loss(places, Targets(boxes, labels)) + len(chosen) * set_loss(together, repeated)


@cache
def train(
    run: Run, seed: int, rate: float, loss: Callable[..., Tensor] = loss_of, build: type[RTDETR] = RTDETR
) -> RTDETR:
    """A network for this seed."""
    preset, device = PRESETS[run.preset], run.device
    training.seed_everything(seed)
    model, scenes = build(preset), named("train", preset.scenes[0], seed, range(len(NAMES)))
    data = [each.to(device) for each in (scenes.images, *shapes.things(scenes))]
    batches = training.minibatches(data, preset.batch, preset.steps, seed)
    training.fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)
    return model


@torch.inference_mode()
def look(model: nn.Module, images: Tensor) -> list[Found]:
    """What places and each layer find in pictures, on the CPU."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in images.split(100)]
    return [Found(*(torch.cat([each.cpu() for each in part]) for part in zip(*layer, strict=True)))
            for layer in zip(*parts, strict=True)]  # fmt: skip


if __name__ == "__main__":
    model = train(run, run.seeds[0], RATE)
    test = named("test", preset.scenes[1], run.seeds[0], range(len(NAMES)))
    _, *layers = look(model, test.images)
    run.show(
        "trained", [{"layers used": index + 1, "AP (%)": shapes.ap(each, test)} for index, each in enumerate(layers)]
    )

# %% [markdown]
# ## From all places to a few queries to boxes
# The first test scenes with three things: how sure each place of the fine map is, the boxes of the places that become queries,
# and the sure ones after the last layer.


# %%
def chosen(model: RTDETR, places: Found) -> Found:
    """What the places that become queries say, (B, N, ...)."""
    best = model.select(places)[..., None]
    return Found(*(each.gather(1, best.expand(-1, -1, each.shape[-1])) for each in places))


def draw_refined(style: Style, images: Tensor, steps: list[Found]) -> Figure:
    figure, axes = panels(2, 3, width=5.4, height=3.8)
    for row, image in enumerate(images):
        places, start, last = (Found(*(each[row] for each in found)) for found in steps)
        sure = places.logits.sigmoid().amax(-1)[: (SIDE // 4) ** 2].unflatten(0, (SIDE // 4, -1))
        show_heat(axes[row, 0], image, sure, "" if row else "score of places")
        show_image(axes[row, 1], image, "" if row else "queries start")
        draw_boxes(axes[row, 1], xyxy_from_cxcywh(start.boxes) * SIDE, linewidth=1.2)
        show_image(axes[row, 2], image, "" if row else "after the last layer")
        draw_boxes(axes[row, 2], xyxy_from_cxcywh(last.boxes[last.logits.sigmoid().amax(-1) > SURE]) * SIDE)
    return figure


if __name__ == "__main__":
    full = (test.labels < len(NAMES)).all(1).nonzero()[:2, 0]
    said = look(model, test.images)
    steps = [Found(*(part[full] for part in each)) for each in (said[0], chosen(model, said[0]), said[-1])]
    run.figure("refined", partial(draw_refined, images=test.images[full], steps=steps),
               caption="Of all places (bright: a high score) the best become queries; the layers of the decoder move their boxes "
               "and most doubles lose their score. Shown are the first test scenes with three things.",
               alt="Two scenes of three coloured shapes, each as a map of scores, with the boxes of the first queries, and with "
               "fewer boxes, closer around the shapes.")  # fmt: skip

# %% [markdown]
# ## Your own image
# The published RT-DETR-R18, from the hub of transformers, on a photograph of scikit-image or on yours, without suppression. It
# has three layers; `layers=2` leaves the last one out, as promised, with no other change.


# %%
def published(image: Any, layers: int = 3) -> weights.Boxes:
    from transformers import AutoImageProcessor, RTDetrForObjectDetection

    processor = AutoImageProcessor.from_pretrained("PekingU/rtdetr_r18vd_coco_o365")
    network = RTDetrForObjectDetection.from_pretrained("PekingU/rtdetr_r18vd_coco_o365").eval()
    del network.model.decoder.layers[layers:]
    raw = network(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(raw, threshold=0.5, target_sizes=[image.size[::-1]])
    return found["boxes"], [network.config.id2label[int(label)] for label in found["labels"]]


if __name__ == "__main__":
    weights.show_boxes(run, "PekingU/rtdetr_r18vd_coco_o365", published, megabytes=80, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Two maps and a backbone of three convolutions, trained from scratch, for three maps of a pretrained ResNet; the fusion is one
#   convolution down and one up, without RepVGG blocks. There is no denoising and no augmentation.
# - All places are matched and pay; in the paper, only those that become queries. All layers share one pair of heads.
# - The decoder's scores learn the overlap in every arm; only those of the places, which select, are compared.
# - Scenes of 48 px with shapes of one size range: what holds here explains a mechanism; it says nothing about COCO or speed.
