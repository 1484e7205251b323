# %% [markdown]
# # Faster R-CNN: what does a second look at each region add?
#
# Stage one scores boxes at every place of a feature map and corrects the best. Stage two cuts the features of these regions
# out of the same map and judges them anew. Here are both stages, small enough to train in seconds; the experiments set them
# against a dense detector of equal size, and take anchors and suppression away.
#
# | symbol (arXiv:1506.01497) | here | meaning |
# |---|---|---|
# | $k$, $(x_a, y_a, w_a, h_a)$ | `anchors` | reference boxes at each place of the map, $N = h w k$ in all, (N, 4) |
# | $t$, $t^*$ | `offsets`, `encode` | predicted and true offsets of a box from its anchor, Eq. 2 |
# | $p$, $p^*$ | `scores`, `owner` | score of an object; the object an anchor belongs to, $-1$ for none, $-2$: not counted |
# | $N_{cls}$ | `SAMPLED` | anchors of an image that the loss counts |
# | proposals | `Regions` | up to $R$ boxes for the second stage, (B, R, 4) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import detectors, rcnn, weights
from lab.figures import Figure, Style, draw_boxes, panels, show_heat, show_image
from lab.rcnn import FROM_ANCHORS, FROM_REGIONS, Regions, Targets
from lab.run import Run
from lab.training import seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import MLP, Conv2dNormActivation, clip_boxes_to_image

STRIDE = 8  # pixels of the image for one cell of the map
SAMPLED, REGIONS = 64, 16  # anchors and regions of an image that the losses count
RPN_NMS, HEAD_NMS = 0.7, 0.5  # IoU from which the weaker of two boxes goes, after stage one and at the end
RATE = 4e-3  # learning rate, see claims/faster-rcnn.searches.json
SYNCHRONISATIONS_PER_STEP = rcnn.SYNCHRONISATIONS  # suppression among the proposals, and constants


class Preset(NamedTuple):
    """Channels, cells of a region, hidden width, proposals before and after suppression, sides of anchors, factor on the rate."""

    width: int = 64
    grid: int = 4
    hidden: int = 96
    before: int = 64
    after: int = 32
    sides: tuple[float, ...] = (10.0, 16.0, 26.0)
    ratios: tuple[float, ...] = (1.0, 1.8)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(16, 2, 57, 16, 8),
    "quick": Preset(),
    "full": Preset(192, 5, 256, 512, 128, (20.0, 32.0, 52.0), rate=0.25),
}

# %% [markdown]
# ## Boxes as offsets from anchors
# At each place of the map stand $k$ anchors, of several sizes and shapes. A box is told by its offsets from an anchor (Eq. 2),
# so the network never has to name a coordinate of the image:
# $$t_x = (x - x_a) / w_a, \quad t_y = (y - y_a) / h_a, \quad t_w = \log(w / w_a), \quad t_h = \log(h / h_a)$$
# An anchor is positive with an IoU of at least 0.7 with an object, or where it overlaps one best, and negative below 0.3.

# %%
if __name__ == "__main__":
    run = Run.start("faster-rcnn", pretrained=True)
    preset, benchmark = PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    anchors = rcnn.anchors_of(preset.sides, preset.ratios, benchmark.canvas // STRIDE, STRIDE)
    digit = torch.tensor([[[19.0, 21.0, 34.0, 46.0]]])
    owner = rcnn.match(anchors, Targets(digit, torch.zeros(1, 1, dtype=torch.long)), 0.7, 0.3, best=True)[0]
    told = rcnn.encode(FROM_ANCHORS, digit[0].expand(int((owner == 0).sum()), 4), anchors[owner == 0])
    rows = [{"positive anchor": str(a.int().tolist())} | dict(zip(("tx", "ty", "tw", "th"), t.tolist(), strict=True))
            for a, t in zip(anchors[owner == 0], told, strict=True)]  # fmt: skip
    run.show("anchors_of_a_digit", rows)
    counts = [(name, int((owner == kind).sum())) for name, kind in (("positive", 0), ("negative", -1), ("neither", -2))]
    run.show("kinds", [{"of all anchors": name, "anchors": count} for name, count in counts])

# %% [markdown]
# ## Two stages on one map
# The region proposal network, a 3 x 3 convolution and two 1 x 1 ones, gives each anchor a score and four offsets. Its best
# boxes, thinned by suppression, are the proposals. RoIAlign turns what is inside each into a grid of fixed size, and a small
# network names the class, or background, and corrects the box once more.


# %%
class AnchorHead(nn.Module):
    """Maps (B, C, h, w) -> logits (B, N, K) and offsets (B, N, 4) of all anchors; K = 1 makes it a proposal network."""

    def __init__(self, width: int, k: int, classes: int = 1, depth: int = 1) -> None:
        super().__init__()
        self.classes = classes
        self.tower = nn.Sequential(*(Conv2dNormActivation(width, width) for _ in range(depth)))
        self.score, self.box = nn.Conv2d(width, k * classes, 1), nn.Conv2d(width, 4 * k, 1)
        nn.init.normal_(self.box.weight, std=0.01)
        self.score.bias = nn.Parameter(torch.full((k * classes,), -2.0))  # objects are rare

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.tower(features)
        logits, offsets = (each(x).permute(0, 2, 3, 1).flatten(1).float() for each in (self.score, self.box))
        return logits.unflatten(1, (-1, self.classes)), offsets.unflatten(1, (-1, 4))


class FasterRCNN(nn.Module):
    """Both stages; images (B, 3, H, W), H = W = `canvas` -> class logits and boxes of up to R regions."""

    def __init__(self, preset: Preset, benchmark: detectors.Benchmark) -> None:
        super().__init__()
        self.preset, self.classes, self.canvas = preset, benchmark.classes, benchmark.canvas
        self.anchors = nn.Buffer(rcnn.anchors_of(preset.sides, preset.ratios, self.canvas // STRIDE, STRIDE))
        self.backbone = rcnn.backbone(preset.width)
        self.rpn = AnchorHead(preset.width, len(preset.sides) * len(preset.ratios))
        self.hidden = MLP(preset.width * preset.grid**2, [preset.hidden] * 2, inplace=None)
        self.class_head = nn.Linear(preset.hidden, self.classes + 1)
        self.box_head = nn.Linear(preset.hidden, 4 * self.classes)

    @torch.no_grad()
    def proposals(
        self, logits: Tensor, offsets: Tensor, most: int | None = None, iou: float | None = RPN_NMS
    ) -> Regions:
        """What stage two will judge: at most `most` boxes an image."""
        boxes = clip_boxes_to_image(rcnn.decode(FROM_ANCHORS, offsets, self.anchors), (self.canvas, self.canvas))
        return rcnn.thinned(boxes, logits[..., 0], self.preset.before, most or self.preset.after, iou)

    def judged(self, features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Stage two: class logits (B, R, K + 1), the last for background, and offsets for each class (B, R, K, 4)."""
        x = self.hidden(rcnn.crop(features, boxes, self.preset.grid, STRIDE).flatten(2)).relu()
        return self.class_head(x).float(), self.box_head(x).float().unflatten(-1, (self.classes, 4))


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model = FasterRCNN(preset, benchmark)
    features = model.backbone(torch.rand(2, 3, benchmark.canvas, benchmark.canvas))
    scores, offsets = model.rpn(features)
    regions = model.proposals(scores, offsets)
    judged, moved = model.judged(features, regions.boxes)
    shapes = {"features": features, "scores of anchors": scores, "their offsets": offsets, "proposals": regions.boxes,
              "classes of proposals": judged, "their offsets, for each class": moved}  # fmt: skip
    run.show("shapes", [{"of two images": name, "shape": str(tuple(each.shape))} for name, each in shapes.items()])

# %% [markdown]
# ## Both stages pay alike
# For its classes, and where there is an object for its box, with a smooth $L_1$ loss (Eq. 1):
# $$L = \frac{1}{N_{cls}} \sum_i L_{cls}(p_i, p_i^*) + \frac{\lambda}{N_{reg}} \sum_i p_i^* L_{reg}(t_i, t_i^*)$$
# Nearly all anchors are background, so the sums are over a random sample, half of it positive where there are so many.


# %%
def rpn_loss(logits: Tensor, offsets: Tensor, anchors: Tensor, targets: Targets) -> Tensor:
    """Eq. 1 over a sample of the anchors."""
    index, taken = rcnn.sample(owner := rcnn.match(anchors, targets, 0.7, 0.3, best=True), SAMPLED, 0.5)
    owner = owner.gather(1, index)  # (B, S)
    positive, number = taken & (owner >= 0), taken.sum()
    of_class = functional.binary_cross_entropy_with_logits(
        logits[..., 0].gather(1, index), positive.float(), reduction="none"
    )
    wanted = rcnn.encode(FROM_ANCHORS, rcnn.rows(targets.boxes, owner.clamp(min=0)), anchors[index])
    of_box = rcnn.box_loss(rcnn.rows(offsets, index), wanted)
    return rcnn.mean_of(of_class, taken) + rcnn.mean_of(of_box, positive, number)


def head_loss(model: FasterRCNN, features: Tensor, regions: Regions, targets: Targets) -> Tensor:
    """The same form over a sample of the regions; the true boxes join them while training."""
    boxes = torch.cat([regions.boxes, targets.boxes], 1)
    owner = rcnn.match(boxes, targets, 0.5, 0.5).masked_fill(~torch.cat([regions.valid, targets.labels >= 0], 1), -2)
    index, taken = rcnn.sample(owner, REGIONS, 0.25)
    boxes, owner = rcnn.rows(boxes, index), owner.gather(1, index)
    logits, offsets = model.judged(features, boxes)
    positive, mine = taken & (owner >= 0), owner.clamp(min=0)
    label = targets.labels.gather(1, mine).clamp(min=0)  # (B, S)
    of_class = functional.cross_entropy(logits.mT, label.where(positive, model.classes), reduction="none")
    wanted = rcnn.encode(FROM_REGIONS, rcnn.rows(targets.boxes, mine), boxes)
    of_box = rcnn.box_loss(offsets.take_along_dim(label[..., None, None], 2)[:, :, 0], wanted)
    return rcnn.mean_of(of_class, taken) + rcnn.mean_of(of_box, positive, taken.sum())


def stages_loss(model: FasterRCNN, features: Tensor, targets: Targets) -> tuple[Tensor, Regions]:
    """Both stages together, as libraries train them, and what the first proposed."""
    logits, offsets = model.rpn(features)
    regions = model.proposals(logits, offsets)
    return rpn_loss(logits, offsets, model.anchors, targets) + head_loss(model, features, regions, targets), regions


def loss_of(model: FasterRCNN, scenes: Any) -> Tensor:
    return stages_loss(model, model.backbone(scenes.images), rcnn.targets_of(scenes))[0]


if __name__ == "__main__":
    scene = detectors.scenes_of(benchmark, "train", run.seeds[0])[:4]
    targets, features = rcnn.targets_of(scene), model.backbone(scene.images)
    scores, offsets = model.rpn(features)
    paid = {"one": rpn_loss(scores, offsets, model.anchors, targets),
            "two": head_loss(model, features, model.proposals(scores, offsets), targets)}  # fmt: skip
    run.show("losses", [{"untrained, stage": name, "loss": loss.item()} for name, loss in paid.items()])

# %% [markdown]
# ## Train it
# Digits pasted on photographs, all one class here. Suppression comes twice: among the proposals, and among the final boxes.


# %%
def detect(model: FasterRCNN, images: Tensor, first: bool = True, second: bool = True, most: int | None = None) -> Any:
    """Final boxes, scores and labels of each image; `first`, `second`: which suppression is done; `most`: regions."""
    features = model.backbone(images)
    scores, shifts = model.rpn(features)
    regions = model.proposals(scores, shifts, most, RPN_NMS if first else None)
    logits, offsets = model.judged(features, regions.boxes)
    boxes = rcnn.decode(FROM_REGIONS, offsets, regions.boxes[:, :, None])
    sure = logits.softmax(-1)[..., :-1] * regions.valid[..., None]
    return rcnn.final(clip_boxes_to_image(boxes, (model.canvas,) * 2), sure, HEAD_NMS if second else None)


@cache
def train(run: Run, seed: int, rate: float = RATE, split: Any = "test", sides: Any = None, ratios: Any = None,
          follow: bool = True) -> detectors.Trained[FasterRCNN]:  # fmt: skip
    """A detector for this seed, with other anchors where given; `follow` measures AP on the way."""
    preset, benchmark = PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    preset = preset._replace(sides=sides or preset.sides, ratios=ratios or preset.ratios)
    if not follow:
        benchmark = replace(benchmark, every=benchmark.steps[0])
    seed_everything(seed)
    model, rate = FasterRCNN(preset, benchmark), rate * preset.rate
    return detectors.train(
        run, benchmark, seed, model, loss_of, detect, learning_rate=rate, what="two stages", split=split
    )


if __name__ == "__main__":
    trained = train(run, run.seeds[0], RATE)
    run.show("trained", [{"steps": step, "AP on test scenes (%)": ap} for step, ap in trained.curve[::3]])

# %% [markdown]
# ## One scene, stage by stage
# Where does stage one see objects, what does it propose, and what does stage two leave?


# %%
def draw_stages(style: Style, scene: Any, model: FasterRCNN, heat: Tensor, regions: Regions, found: Any) -> Figure:
    figure, axes = panels(2, 2, width=5.4, height=5.7)
    k, cells = len(model.anchors) * STRIDE**2 // model.canvas**2, model.canvas // STRIDE
    middle = (cells // 2 * cells + cells // 2) * k
    show_image(axes[0, 0], scene.images[0], f"{k} anchors at each place")
    draw_boxes(axes[0, 0], model.anchors[middle : middle + k], linewidth=1.2)
    show_heat(axes[0, 1], scene.images[0], heat, "score of the best anchor")
    show_image(axes[1, 0], scene.images[0], f"{int(regions.valid.sum())} proposals")
    draw_boxes(axes[1, 0], regions.boxes[regions.valid], linewidth=0.9)
    show_image(axes[1, 1], scene.images[0], "after the second look")
    sure = found["scores"] >= 0.5
    draw_boxes(axes[1, 1], found["boxes"][sure], [f"{score:.2f}" for score in found["scores"][sure]])
    return figure


if __name__ == "__main__":
    right = detectors.all_found(run, benchmark, trained, detect)
    full = max(right, key=lambda index: len(trained.test.boxes[index]))  # the fullest scene
    scene, model = trained.test[full : full + 1], trained.model.cpu()
    with torch.inference_mode():
        scores, offsets = model.rpn(model.backbone(scene.images))
        regions, (found,) = model.proposals(scores, offsets), detect(model, scene.images)
    heat = scores[0, :, 0].sigmoid().unflatten(0, (benchmark.canvas // STRIDE, benchmark.canvas // STRIDE, -1)).amax(2)
    run.figure(
        "stages",
        partial(draw_stages, scene=scene, model=model, heat=heat, regions=regions, found=found),
        caption="From anchors to boxes, on the test scene with the most objects of those where all are found and nothing else. "
        "Proposals crowd around objects; the second stage judges and corrects each; suppression leaves one of those that agree.",
        alt="One scene four times: anchors at one place, a map of scores that is bright on objects, many proposals, and the "
        "final boxes with scores.",
    )
    model.to(run.device)

# %% [markdown]
# ## Your own image
# torchvision's Faster R-CNN with ResNet-50 and a feature pyramid, second recipe, on a photograph of scikit-image or on yours.


# %%
def published(image: Any) -> weights.Boxes:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, fasterrcnn_resnet50_fpn_v2

    release = FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    network = fasterrcnn_resnet50_fpn_v2(weights=release, box_score_thresh=0.7).eval()
    (found,) = network([release.transforms()(image)])
    return found["boxes"], [release.meta["categories"][label] for label in found["labels"].tolist()]


if __name__ == "__main__":
    name = "torchvision's fasterrcnn_resnet50_fpn_v2"
    weights.show_boxes(run, name, published, megabytes=170, otherwise="motorcycle", cache="TORCH_HOME")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Both stages are trained together, as libraries do it; the paper alternates four trainings. RoIAlign takes the place of RoI
#   pooling. The backbone is small, has one map of stride 8, and is trained from scratch.
# - There are 32 proposals instead of 300, because a scene has a few objects at most; the samples of the losses are smaller
#   too. All digits are one class in the small runs.
# - Smooth $L_1$ turns linear at 1/9, as in later code. Anchors that cross the border of the image are not left out.
# - Everything is trained for seconds on scenes of 64 px. What holds here explains a mechanism; it says nothing about COCO.
