# %% [markdown]
# # YOLO26: can a second head learn to give one box for each object, so that nothing need be suppressed?
#
# Two heads read the same map. One lets several points learn each object: that is a rich signal, but it leaves surplus boxes to
# suppress. The other lets one point learn it, and its boxes are final. Here is that idea, small enough to train in seconds; the
# experiments ask what the second head loses, what the first one does for it, and what suppression does in a crowd.
#
# | symbol | here | meaning |
# |---|---|---|
# | $t = s^{\alpha} u^{\beta}$ | `task_aligned` | how well a point does for an object, from score and IoU, as in YOLOv8 |
# | | `MOST` | most points that learn an object, in each head |
# | $\mathcal{L}_m$, $\mathcal{L}_1$ | `head_loss` | losses of the one-to-many and of the one-to-one head |
# | $\lambda$ | `share` | weight of the one-to-many head, falling in training |
# | B, N, M | | scenes, points of the grid, most objects of a scene |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import metrics
from lab.boxes import grid_points, suppressed
from lab.data.hoops import SIDE, Hoops, hoops
from lab.figures import Figure, Style, draw_boxes, panels, show_heat, show_image
from lab.pyramid import conv
from lab.run import Run
from lab.training import fit, minibatches, seed_everything
from torch import Tensor, nn
from yolov8 import Targets, complete_iou_loss, task_aligned

MOST = {"many": 10, "one": 1}  # most points that learn an object, in each head
SHARE = (0.9, 0.1)  # weight of the one-to-many head at the start and at the end of training
STRIDE, BOX = 4, 5.0  # pixels between points; weight of the box loss
LEAST, SURE = 0.03, 0.5  # score below which a box is not reported at all, and from which it is shown
RATE = 8e-3  # peak learning rate: see claims/yolo26.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # all points are weighted, none is picked out


class Preset(NamedTuple):
    """Steps, scenes in a step, channels of the map and of a branch, numbers of training and test scenes, factor on the rate."""

    steps: int = 200
    batch: int = 16
    width: int = 32
    head: int = 16
    scenes: tuple[int, int] = (2000, 200)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(3, 4, 8, 8, (16, 24)),
    "quick": Preset(),
    "full": Preset(12_000, 256, 128, 64, (60_000, 2000), 0.25),
}

# %% [markdown]
# ## One map, two heads
# Each point of the grid gives a score and the distances of four edges: plain numbers here, not distributions. The heads are
# alike and share nothing but the map. In use the one that is not needed is cut off.


# %%
class Output(NamedTuple):
    """Of N points: distances to left, upper, right and lower edge (B, N, 4) px, scores as logits (B, N, 1), places (N, 2) px."""

    away: Tensor
    logits: Tensor
    points: Tensor

    @property
    def boxes(self) -> Tensor:
        """Boxes xyxy in pixels, (B, N, 4)."""
        return torch.cat([self.points - self.away[..., :2], self.points + self.away[..., 2:]], -1)


class Head(nn.Module):
    """Two branches, for edges and for scores: map (B, C, h, w) -> `Output`."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.edges = nn.Sequential(conv(inputs, width), nn.Conv2d(width, 4, 1))
        self.score = nn.Sequential(conv(inputs, width), nn.Conv2d(width, 1, 1))
        for branch, start in ((self.edges, 1.5), (self.score, -4.6)):  # a box of 13 px, with a score of 0.01
            nn.init.constant_(list(branch.parameters())[-1], start)

    def forward(self, features: Tensor) -> Output:
        edges, logits = (branch(features).flatten(2).mT.float() for branch in (self.edges, self.score))
        with features.device:
            points = grid_points(features.shape[-1]) * features.shape[-1] * STRIDE
        return Output(nn.functional.softplus(edges) * STRIDE, logits, points)


class YOLO26(nn.Module):
    """Images (B, 3, S, S) -> what each head says, by its name."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width = preset.width
        self.body = nn.Sequential(conv(3, width // 2, stride=2), conv(width // 2, width, stride=2),
                                  conv(width, width), conv(width, width))  # fmt: skip
        self.heads = nn.ModuleDict({name: Head(width, preset.head) for name in MOST})

    def forward(self, images: Tensor) -> dict[str, Output]:
        features = self.body(images)
        return {name: head(features) for name, head in self.heads.items()}


if __name__ == "__main__":
    run = Run.start("yolo26", pretrained=False)
    preset = PRESETS[run.preset]
    said = YOLO26(preset)(torch.rand(2, 3, SIDE, SIDE))["one"]
    run.show("shapes", [{"of two scenes": a, "shape": str(tuple(b.shape))} for a, b in said._asdict().items()])

# %% [markdown]
# ## Ten points, or one
# In both heads the points with the largest $t = s^{\alpha} u^{\beta}$ learn an object. The one-to-one head takes the best alone,
# by the same measure (arXiv:2405.14458, Section 3.1), so what is best for one head is among the best for the other. Below, three
# points in an object, equally sure of it, of which the second has the right box: the score that each head teaches them.

# %%
if __name__ == "__main__":
    points = torch.tensor([[8.0, 10.0], [10.0, 10.0], [12.0, 10.0]])
    corners = torch.tensor([[2.0, 2, 19, 18], [2.0, 2, 18, 18], [2.0, 2, 20, 19]])
    guess = Output(torch.cat([points - corners[:, :2], corners[:, 2:] - points], 1)[None], torch.zeros(1, 3, 1), points)
    truth = Targets(torch.tensor([[[2.0, 2.0, 18.0, 18.0]]]), torch.zeros(1, 1, dtype=torch.long))
    learns: dict[str, Any] = {name: task_aligned(guess, truth, most).target[0] for name, most in MOST.items()}  # type: ignore[arg-type]
    run.show("assignment", [{"point": n, "one-to-many learns": learns["many"][n].item(),
                             "one-to-one learns": learns["one"][n].item()} for n in range(3)])  # fmt: skip

# %% [markdown]
# ## One loss that shifts
# Each head pays for its scores and for the boxes of its points. In training the weight moves to the head that is used:
# $$\mathcal{L} = \lambda \, \mathcal{L}_m + (1 - \lambda) \, \mathcal{L}_1$$


# %%
def head_loss(output: Output, targets: Targets, most: int) -> Tensor:
    """Cross-entropy of all scores, and the CIoU loss of points with an object, weighted by the score they learn."""
    owner, target = task_aligned(output, targets, most)  # type: ignore[arg-type]
    of_score = nn.functional.binary_cross_entropy_with_logits(output.logits[..., 0], target, reduction="none")
    truth = targets.boxes.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, 4))  # (B, N, 4)
    of_box = complete_iou_loss(output.boxes, torch.where((owner >= 0)[..., None], truth, output.boxes.detach()))
    return (of_score + BOX * target * of_box).sum() / target.sum().clamp(min=1)


def loss_of(model: nn.Module, images: Tensor, boxes: Tensor, share: float) -> Tensor:
    said, targets = model(images), Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.long, device=boxes.device))
    many, one = (head_loss(said[name], targets, most) for name, most in MOST.items())
    return share * many + (1 - share) * one


@cache
def train(run: Run, seed: int, rate: float, share: tuple[float, float]) -> YOLO26:
    """A network for this seed; the weight of the one-to-many head goes from the first to the second share."""
    preset = PRESETS[run.preset]
    seed_everything(seed)
    model, data = YOLO26(preset), [each.to(run.device) for each in hoops("train", preset.scenes[0], seed)]
    order = minibatches(data, preset.batch, preset.steps, seed)

    def batch(step: int) -> tuple[Any, ...]:
        return *next(order), share[0] + (share[1] - share[0]) * step / preset.steps

    fit(model, batch, loss_of, steps=preset.steps, learning_rate=rate * preset.rate, device=run.device)
    return model


Found = list[dict[str, Tensor]]


@torch.inference_mode()
def look_at(model: nn.Module, images: Tensor) -> dict[str, Output]:
    """What both heads say of scenes, on the CPU."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in images.split(500)]
    away, logits = ({name: torch.cat([part[name][field].cpu() for part in parts]) for name in MOST} for field in (0, 1))
    return {name: Output(away[name], logits[name], parts[0][name].points.cpu()) for name in MOST}


def boxes_of(output: Output, iou: float | None = None) -> Found:
    """Of each scene the boxes in pixels that are a little sure; with an IoU, after suppression (NMS) at it."""
    parts = zip(output.boxes.clamp(0, SIDE), output.logits[..., 0].sigmoid(), strict=True)
    found = [
        {"boxes": b[s >= LEAST], "scores": s[s >= LEAST], "labels": torch.zeros(int((s >= LEAST).sum()))}
        for b, s in parts
    ]
    return found if iou is None else [suppressed(each, iou) for each in found]


def truth_of(scenes: Hoops) -> Found:
    """The hoops of each scene, as `lab.metrics` takes them."""
    kept = [boxes[boxes[:, 2] > boxes[:, 0]] for boxes in scenes.boxes]
    return [{"boxes": boxes, "labels": torch.zeros(len(boxes))} for boxes in kept]


def precision(found: Found, scenes: Hoops) -> float:
    """COCO's AP in %."""
    return 100 * metrics.average_precision(found, truth_of(scenes), sizes=None)["ap"]


if __name__ == "__main__":
    model, test = train(run, run.seeds[0], RATE, SHARE), hoops("test", preset.scenes[1], run.seeds[0])
    heads = look_at(model, test.images)
    ways = {"one-to-many": ("many", None), "one-to-many, NMS at 0.5": ("many", 0.5), "one-to-one": ("one", None)}
    run.show("trained", [{"boxes of": way, "AP on test scenes (%)": precision(boxes_of(heads[head], iou), test)}
                         for way, (head, iou) in ways.items()])  # fmt: skip

# %% [markdown]
# ## Two hoops, one over the other
# Where boxes overlap, suppression cannot know whether two boxes are one object or two. Then the scores of all points: around
# each hoop several points of the first head are sure, and one of the second.


# %%
def draw_ways(style: Style, scenes: Hoops, found: dict[str, Found]) -> Figure:
    figure, axes = panels(len(scenes.images), len(found), width=5.4, height=1.9 * len(scenes.images))
    for column, (way, each) in enumerate(found.items()):
        for row, boxes in enumerate(each):
            show_image(axes[row, column], scenes.images[row], way if row == 0 else None)
            draw_boxes(axes[row, column], boxes["boxes"][boxes["scores"] >= SURE], linewidth=1.3)
    return figure


def draw_scores(style: Style, scenes: Hoops, heads: dict[str, Output]) -> Figure:
    figure, axes = panels(1, 3, width=5.4, height=2.1)
    show_image(axes[0, 0], scenes.images[0], "scene")
    for ax, name, title in zip(axes[0, 1:], MOST, ("one-to-many", "one-to-one"), strict=True):
        show_heat(ax, scenes.images[0], heads[name].logits[0, :, 0].sigmoid().unflatten(0, (SIDE // STRIDE, -1)), title)
    return figure


if __name__ == "__main__":
    crowd = hoops("test", 2, run.seeds[0], pairs=1.0)
    heads = look_at(model, crowd.images)
    ways = {"one-to-many": ("many", None), "NMS at 0.5": ("many", 0.5), "one-to-one": ("one", None)}
    run.figure("ways", partial(draw_ways, scenes=crowd, found={w: boxes_of(heads[h], iou) for w, (h, iou) in ways.items()}),
               caption=f"Boxes with a score of at least {SURE:g} on the first two test scenes with a pair.",
               alt="Two scenes of hoops, each three times: many boxes, what suppression leaves, one for each hoop.")  # fmt: skip
    run.figure("scores", partial(draw_scores, scenes=crowd, heads=heads),
               caption="The first scene, and the scores of all points in the two heads (bright: high).",
               alt="A scene of hoops, and two coarse maps over it: broad spots, and single bright points.")  # fmt: skip
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The two heads and the shift of the loss follow the documentation of YOLO26, the assignment the paper of YOLOv10. No line and
#   no weight of the published code is used; both are under AGPL-3.0.
# - One grid of stride 4 on scenes of 40 px, one class, a backbone of four convolutions, AdamW instead of MuSGD. The shift is
#   a straight line between shares that are chosen here.
# - STAL, which cares for tiny objects, is left out: hoops are at least twelve pixels wide.
# - Hoops hide nothing of each other, unlike people in a crowd: what suppression loses here is not lost for being hidden.
# - What holds here, after seconds of training, explains a mechanism; it says nothing about COCO.
