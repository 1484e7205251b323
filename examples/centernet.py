# %% [markdown]
# # CenterNet: does a look at the centre tell true boxes from wrong pairs of corners?
#
# An object is found as a triplet of keypoints: a top-left and a bottom-right corner make a box, and a centre inside confirms
# it. Here is that idea, small enough to train in seconds; the experiments read the same corners with and without the check,
# take the pooling away, and set beside it the other model of this name, Objects as Points, which needs no corners.
#
# | symbol (arXiv:1904.08189) | here | meaning |
# |---|---|---|
# | $tl$, $br$, centre | `KINDS` | the three kinds of keypoints |
# | $\hat Y$ | `Keypoints.heat` | a heatmap for each class, (B, K, H, W), as logits |
# | $e$ | `Keypoints.extra` | embedding, or tag, of a corner, (B, 1, H, W): alike for the two corners of an object |
# | | `Keypoints.offset` | what rounding to a cell took away, in cells, (B, 2, H, W) |
# | $n$ | `odd` | the central region is the middle $1/n$ of the box, along both axes |
# | M, k | | most objects of a scene; keypoints of each kind that are read |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from lab import detectors
from lab.boxes import suppressed
from lab.figures import Figure, Style, draw_boxes, panels, show_heat, show_image
from lab.keypoints import Found, Head, Hourglass, Keypoints, cells_of, gather, objects_of, place_loss, places, surest
from lab.run import Run
from lab.training import seed_everything
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

KINDS = {"tl": "top-left corners", "br": "bottom-right corners", "centre": "centres"}
TAGS_APART, TAGS = 0.5, 0.1  # corners whose tags differ by more do not belong together; weight of the loss of tags
LEAST = 0.01  # score below which a keypoint is not reported at all
RATE = 1.6e-2  # learning rate: see claims/centernet.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # objects that are not there are weighted with 0, none is picked out


class Preset(NamedTuple):
    """Channels of the hourglass at strides 4, 8 and 16; keypoints of each kind that are read; a factor on the rate."""

    widths: tuple[int, int, int] = (16, 64, 96)
    keypoints: int = 20
    rate: float = 1.0


PRESETS = {"smoke": Preset((16, 16, 16), 8), "quick": Preset(), "full": Preset((96, 160, 224), 70, rate=0.25)}

# %% [markdown]
# ## Pooling that looks along lines
# A corner of a box often shows nothing of the object. *Corner pooling* takes, for the top-left corner, the maximum of
# everything to the right and of everything below. *Cascade* corner pooling looks inside first: along the top border, each
# place takes the maximum below it, and then the corner takes the maximum along the border. *Center pooling* adds the maximum
# of the whole row and that of the whole column (Figures 4 and 5 of the paper).


# %%
def pool_towards(x: Tensor, side: str) -> Tensor:
    """Each place takes the maximum from itself to a side of the map, (B, C, H, W)."""
    axis = 3 if side in ("left", "right") else 2
    if side in ("left", "top"):
        return x.cummax(axis).values
    return x.flip(axis).cummax(axis).values.flip(axis)


def center_pool(rows: Tensor, columns: Tensor) -> Tensor:
    """The maximum of the row of one map plus that of the column of another: two (B, C, H, W) -> the same."""
    return rows.amax(3, keepdim=True) + columns.amax(2, keepdim=True)


def cascade_pool(maps: tuple[Tensor, ...], across: str, down: str) -> Tensor:
    """Of four maps: along either border, what lies on it plus the most that lies inside of it, then the most of that."""
    border, inside, other_border, other_inside = maps
    first = pool_towards(border + pool_towards(inside, down), across)
    return first + pool_towards(other_border + pool_towards(other_inside, across), down)


class CornerPooling(nn.Module):
    """Cascade corner pooling of one corner; sides are those towards the inside, e.g. right and bottom for the top-left."""

    def __init__(self, width: int, across: str, down: str) -> None:
        super().__init__()
        self.sides, half = (across, down), width // 2
        self.looks = Conv2dNormActivation(width, 4 * half)  # four convolutions in one
        self.merge, self.skip = Conv2dNormActivation(half, width), Conv2dNormActivation(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(cascade_pool(self.looks(x).chunk(4, dim=1), *self.sides)) + self.skip(x)


class CenterPooling(nn.Module):
    """Center pooling of a row and a column that are looked at by convolutions of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.looks = Conv2dNormActivation(width, 2 * half)
        self.merge, self.skip = Conv2dNormActivation(half, width), Conv2dNormActivation(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.pool(*self.looks(x).chunk(2, dim=1))) + self.skip(x)

    def pool(self, rows: Tensor, columns: Tensor) -> Tensor:
        return center_pool(rows, columns)


def draw_pooling(style: Style) -> Figure:
    box, x = torch.tensor([3, 4, 12, 11]), torch.zeros(1, 1, 16, 16)  # x0 y0 x1 y1 in cells
    x[0, 0, [4, 7, 9, 11], [8, 3, 12, 6]] = 1  # telling places on the four sides
    corner = pool_towards(x, "right") + pool_towards(x, "bottom")
    maps = {"features": x, "corner pooling": corner, "cascade": cascade_pool((x,) * 4, "right", "bottom")}
    figure, axes = panels(2, 2, width=5.4, height=5.4)
    for ax, (title, values) in zip(axes.flat, (maps | {"center pooling": center_pool(x, x)}).items(), strict=True):
        show_image(ax, values[0, 0], title, cmap=style.sequential, vmax=3)
        draw_boxes(ax, torch.cat([box[:2], box[2:] + 1])[None].float(), linewidth=1.2, linestyle="--")
        at = (8, 7) if title == "center pooling" else box[:2].tolist()
        ax.plot(*at, "o", markersize=11, markerfacecolor="none", color="white", mew=1.8)
    return figure


if __name__ == "__main__":
    run = Run.start("centernet", pretrained=False)
    run.figure(
        "pooling",
        draw_pooling,
        caption="Four telling places on the sides of an object (dashed), and what corner pooling, cascade corner pooling (at the "
        "top-left corner, circle) and center pooling (at the centre, circle) gather of them.",
        alt="Four maps of 16 x 16 cells with the same dashed box: four bright cells; stripes left of and above them; filled "
        "regions; and full rows and columns that cross inside the box.",
    )

# %% [markdown]
# ## Three kinds of keypoints
# An hourglass goes down to a coarse map and up again to a quarter of the image's side. Each kind of keypoint has its own
# pooling, and predicts heatmaps and offsets, corners also tags (`lab/keypoints.py`).


# %%
class CenterNet(nn.Module):
    """Images (B, 3, H, W) -> keypoints of each kind."""

    def __init__(self, preset: Preset, classes: int) -> None:
        super().__init__()
        width = preset.widths[0]
        self.body = Hourglass(preset.widths)
        poolings = CornerPooling(width, "right", "bottom"), CornerPooling(width, "left", "top"), CenterPooling(width)
        heads = zip(KINDS, poolings, (1, 1, 0), strict=True)
        self.heads = nn.ModuleDict({kind: Head(pooling, width, classes, tags) for kind, pooling, tags in heads})

    def forward(self, images: Tensor) -> dict[str, Keypoints]:
        features = self.body(images)
        return {kind: head(features) for kind, head in self.heads.items()}


if __name__ == "__main__":
    preset, benchmark = PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    seed_everything(run.seeds[0])
    model = CenterNet(preset, benchmark.classes)
    said = model(torch.rand(2, 3, benchmark.canvas, benchmark.canvas))
    rows = [
        {"of two images": KINDS[kind]} | {a: str(tuple(b.shape)) for a, b in said[kind]._asdict().items()}
        for kind in said
    ]
    run.show("shapes", rows)

# %% [markdown]
# ## Tags say which corners belong together
# Heatmaps fall off around a true keypoint as a Gaussian, and learn by CornerNet's focal loss; offsets by an L1 loss. Tags of the
# two corners of an object are pulled to their mean, and means of different objects pushed apart (Eq. 4 and 5,
# arXiv:1808.01244):
# $$L_{pull} = \frac{1}{M} \sum_i (e_{tl_i} - e_i)^2 + (e_{br_i} - e_i)^2, \qquad
# L_{push} = \frac{1}{M(M-1)} \sum_{i \neq j} \max(0, 1 - |e_i - e_j|)$$


# %%
def pull_push(first: Tensor, second: Tensor, there: Tensor) -> Tensor:
    """Tags of the two corners of each object, (B, M) both: pulled together; their means pushed at least 1 apart."""
    count, mean = there.sum(1).clamp(min=1), (first + second) / 2
    pull = (((first - mean) ** 2 + (second - mean) ** 2) * there).sum(1) / count
    others = there[:, :, None] & there[:, None] & ~torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
    apart = (1 - (mean[:, :, None] - mean[:, None]).abs()).clamp(min=0)  # (B, M, M)
    return (pull + (apart * others).sum((1, 2)) / (count * (count - 1)).clamp(min=1)).mean()


def loss_of(model: nn.Module, scenes: Any) -> Tensor:
    """Heat and offsets of all kinds of keypoints, and the tags of corners."""
    output, objects = model(scenes.images), objects_of(scenes)
    first, second = (
        gather(output[kind].extra, cells_of(places(objects.boxes, kind), output[kind].heat.shape[-1]))[..., 0]
        for kind in ("tl", "br")
    )
    loss = TAGS * pull_push(first, second, objects.there)
    return loss + sum(place_loss(found, objects, kind) for kind, found in output.items())


if __name__ == "__main__":
    tags = {"0 0 and 2 2": ((0, 2), (0, 2)), "0 0 and 0 0": ((0, 0), (0, 0)), "0 2 and 2 0": ((0, 2), (2, 0))}
    rows = []
    for name, (a, b) in tags.items():
        loss = pull_push(torch.tensor([a]).float(), torch.tensor([b]).float(), torch.ones(1, 2, dtype=torch.bool))
        rows.append({"tags of two objects": name, "loss": loss.item()})
    run.show("tags", rows)

# %% [markdown]
# ## The centre decides
# A keypoint is a place that no neighbour in its 3 x 3 window exceeds. Corners are paired by class, tag and order. A pair lives
# only if a centre of its class lies in its central region, and its score is then the mean of the three (Eq. 1):
# $$ctl_x = \frac{(n+1)\, tl_x + (n-1)\, br_x}{2n}, \qquad cbr_x = \frac{(n-1)\, tl_x + (n+1)\, br_x}{2n}$$
# $n = 3$ for boxes below 150 px, 5 above. Below, two objects, all of whose corners have the same tag: three pairs are possible.


# %%
def central_region(boxes: Tensor) -> Tensor:
    """The middle third of each box, the middle fifth of those from 150 px: (..., 4) -> (..., 4), Eq. 1."""
    low, high = boxes[..., :2], boxes[..., 2:]
    odd = torch.where((high - low).clamp(min=0).prod(-1, keepdim=True) < 150**2, 3.0, 5.0)
    return torch.cat([(odd + 1) * low + (odd - 1) * high, (odd - 1) * low + (odd + 1) * high], dim=-1) / (2 * odd)


class Pairs(NamedTuple):
    """All pairs of corners: boxes (B, k, k, 4), scores, labels and which belong together, each (B, k, k)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


def pair_corners(tl: Found, br: Found) -> Pairs:
    """Pairs of the surest corners; valid where class, tags and order agree."""
    k = tl.score.shape[1]
    first, second = tl.at[:, :, None].expand(-1, -1, k, -1), br.at[:, None].expand(-1, k, -1, -1)
    alike = (tl.extra[:, :, None, 0] - br.extra[:, None, :, 0]).abs() <= TAGS_APART
    sure = (tl.score[:, :, None] >= LEAST) & (br.score[:, None] >= LEAST)
    valid = alike & sure & (first < second).all(-1) & (tl.label[:, :, None] == br.label[:, None])
    scores = (tl.score[:, :, None] + br.score[:, None]) / 2
    return Pairs(torch.cat([first, second], dim=-1), scores, tl.label[:, :, None].expand_as(scores), valid)


def centre_scores(pairs: Pairs, centres: Found) -> Tensor:
    """Score of the surest centre of the right class in the central region of each pair, 0 where there is none: (B, k, k)."""
    region = central_region(pairs.boxes)[:, :, :, None]  # (B, k, k, 1, 4)
    at = centres.at[:, None, None]  # (B, 1, 1, c, 2)
    hit = ((at > region[..., :2]) & (at < region[..., 2:])).all(-1)
    hit &= (pairs.labels[..., None] == centres.label[:, None, None]) & (centres.score[:, None, None] >= LEAST)
    return (centres.score[:, None, None] * hit).amax(-1)


def boxes_of(pairs: Pairs, centres: Found | None, side: int) -> list[dict[str, Tensor]]:
    """Boxes of each image, surest first: triplets, or pairs where no centres are given; at most 100."""
    valid, scores, found = pairs.valid, pairs.scores, []
    if centres is not None:
        centre = centre_scores(pairs, centres)
        valid, scores = valid & (centre > 0), (2 * scores + centre) / 3
    for boxes, score, labels, keep in zip(pairs.boxes.clamp(0, side), scores, pairs.labels, valid, strict=True):
        order = score[keep].argsort(descending=True)[:100]
        found.append({"boxes": boxes[keep][order], "scores": score[keep][order], "labels": labels[keep][order]})
    return found


if __name__ == "__main__":
    tl, br, middle = (torch.tensor(each)[None] for each in
                      ([[4.0, 4.0], [32.0, 32.0]], [[20.0, 20.0], [52.0, 52.0]], [[12.0, 12.0], [42.0, 42.0]]))  # fmt: skip
    corners, centres = (
        [Found(torch.ones(1, 2), torch.zeros(1, 2), at, torch.zeros(1, 2, 1)) for at in each]
        for each in ((tl, br), (middle,))
    )
    pairs = pair_corners(*corners)
    checked = centre_scores(pairs, *centres)[pairs.valid]
    regions = zip(pairs.boxes[pairs.valid], central_region(pairs.boxes)[pairs.valid].round(), checked, strict=True)
    rows = [
        {"pair": str(a.tolist()), "central region": str(b.tolist()), "centre": "yes" if c else "no"}
        for a, b, c in regions
    ]
    run.show("pairs", rows)

# %% [markdown]
# ## Train it
# Scenes and steps are those of all detectors here. What the check leaves goes through non-maximum suppression, as in the paper.


# %%
def triplets(model: nn.Module, images: Tensor, *, check: str | None = "centre", k: int = 20) -> list[dict[str, Tensor]]:
    """Boxes before suppression; `check` names the kind of keypoint that confirms, None for pairs of corners."""
    found = {kind: surest(each, k) for kind, each in model(images).items()}
    return boxes_of(pair_corners(found["tl"], found["br"]), found[check] if check else None, images.shape[-1])


def detect(model: nn.Module, images: Tensor, **how: Any) -> list[dict[str, Tensor]]:
    """Final boxes, after suppression at an IoU of 0.5 within each class."""
    return [suppressed(each) for each in triplets(model, images, **how)]


if __name__ == "__main__":
    rate, read = preset.rate * RATE, partial(detect, k=preset.keypoints)
    trained = detectors.train(run, benchmark, run.seeds[0], model, loss_of, read, learning_rate=rate, what="CenterNet")
    run.show("trained", [{"steps": step, "AP on test scenes (%)": ap} for step, ap in trained.curve[::3]])

# %% [markdown]
# ## Three heatmaps of one scene
# What the network says about a test scene, and the keypoints that are read.


# %%
def draw_heatmaps(style: Style, scene: Any, said: Mapping[str, Keypoints]) -> Figure:
    boxes = scene.boxes[0]
    figure, axes = panels(2, 2, width=5.4, height=5.6)
    show_image(axes[0, 0], scene.images[0], "objects")
    draw_boxes(axes[0, 0], boxes)
    for ax, (kind, title) in zip(axes.flat[1:], KINDS.items(), strict=True):
        show_heat(ax, scene.images[0], said[kind].heat[0].sigmoid().amax(0), title)
        ax.plot(*(places(boxes, kind) - 0.5).T.numpy(), "o", markersize=11, markerfacecolor="none", color="white")
        ax.plot(*(surest(said[kind], len(boxes)).at[0] - 0.5).T.numpy(), "+", markersize=9, color="#4FA8E0", mew=2)
    return figure


if __name__ == "__main__":
    full = max(range(len(trained.test)), key=lambda index: len(trained.test.boxes[index]))  # the fullest scene
    scene = trained.test[full : full + 1]
    with torch.inference_mode():
        said = {kind: Keypoints(*(x.cpu() for x in each)) for kind, each in model(scene.images.to(run.device)).items()}
    run.figure(
        "heatmaps",
        partial(draw_heatmaps, scene=scene, said=said),
        caption="Bright: much heat. Circles are the true keypoints, plus signs the surest peaks, as many as there are objects.",
        alt="A scene with boxes around its digits, and the same scene under three heatmaps, with circles at the true "
        "keypoints and plus signs at the peaks.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - The hourglass has three levels instead of two stacked ones of six, starts from random weights and trains for seconds; scenes
#   have 64 px, and all digits are one class.
# - 20 keypoints of each kind are read instead of 70, and a centre has to have a score of 0.01. There is one pass without a
#   flipped image, and plain instead of Soft-NMS.
# - There is no augmentation, and no supervision between stages.
# - No maintained library has the published weights, so the cell "Your own image" is left out.
# - What holds here explains a mechanism; it says nothing about COCO.
