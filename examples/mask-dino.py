# %% [markdown]
# # Mask DINO: can the same queries find boxes and draw masks?
#
# A query has a place, which is a box, and a content, which says a class, corrects the box, and draws a mask as a dot product
# with every pixel. Queries are picked from the image, and noised true boxes join them in training. Here is that model, small
# enough to train in seconds; the experiments read it in four ways, ask what is known before the decoder begins, and let the
# noised boxes be seen.
#
# | symbol (arXiv:2206.02777) | here | meaning |
# |---|---|---|
# | $q_c$ | `content` | what a query says, (B, N, D); its other part is `boxes`, where it looks |
# | $\mathcal{M}(\mathcal{T}(C_b) + \mathcal{F}(C_e))$ | `pixels` | embedding of each pixel, (B, E, H / 2, W / 2) |
# | $C_b$, $C_e$ | `fine`, `grid` | maps of the backbone and of the encoder |
# | $m$ | `masks_of` | logits of the mask of each query, (B, N, H / 2, W / 2) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import GIOU, L1, hungarian
from lab import detectors, instances
from lab.boxes import generalized_iou, grid_points, sine_encoding, xyxy_from_cxcywh
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.queries import DecoderLayer, Noised, Predictions, Targets, targets_of
from lab.run import Run
from lab.training import seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation, box_iou, sigmoid_focal_loss

CLASS, MASK = 4.0, 5.0  # weights beside DETR's of boxes; MASK for the cross-entropy and for the Dice loss
RATE = 4e-3  # see claims/mask-dino.searches.json
PRIOR = 0.25  # side of the box that a token starts from, relative to the image
NOISE = 0.4  # parts of half a side that the middle of a box is shifted by, at most, and that its sides change by
SYNCHRONISATIONS_PER_STEP = 4  # costs go to the Hungarian algorithm and back; queries with an object are counted twice


class Preset(NamedTuple):
    """D, heads, width of the feed-forward networks, E, layers L, queries N, denoising queries S, cells P of a mask that a
    step compares, a factor on the rate."""

    width: int = 48
    heads: int = 4
    hidden: int = 96
    embedding: int = 16
    layers: int = 1
    queries: int = 12
    noised: int = 8
    points: int = 256
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(24, hidden=24, noised=4, points=64),
    "quick": Preset(),
    "full": Preset(192, 8, 768, 32, 6, 40, 64, 2048, rate=0.25),
}

# %% [markdown]
# ## A mask is a dot product
# Two maps together give each pixel an embedding. A query has one vector, and its mask is bright where both agree (Eq. 1):
# $$m = q_c \otimes \mathcal{M}(\mathcal{T}(C_b) + \mathcal{F}(C_e))$$


# %%
class Maps(nn.Module):
    """Images (B, 3, H, W) -> `grid` (B, D, H / 8, W / 8), whose cells are the tokens, and `pixels` (B, E, H / 2, W / 2)."""

    def __init__(self, preset: Preset, canvas: int) -> None:
        super().__init__()
        D, E, third = preset.width, preset.embedding, preset.width // 3
        stages = [(third, 2 * third, 2), (2 * third, D, 2), (D, D, 1)]
        self.stem = Conv2dNormActivation(3, third, stride=2)
        self.deep = nn.Sequential(*(Conv2dNormActivation(a, b, stride=stride) for a, b, stride in stages))
        self.lateral, self.top = nn.Conv2d(third, E, 1), nn.Conv2d(D, E, 1)
        self.segment = nn.Conv2d(E, E, 3, padding=1)
        self.place = nn.Buffer(sine_encoding(grid_points(canvas // 8), D).T.unflatten(1, (canvas // 8, -1)))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(images)
        grid = self.deep(fine) + self.place
        coarse = nn.functional.interpolate(self.top(grid), scale_factor=4.0, mode="bilinear")
        return grid, self.segment((self.lateral(fine) + coarse).relu()).float()


def masks_of(vectors: Tensor, pixels: Tensor) -> Tensor:
    """Eq. 1: vectors (..., B, N, E) and pixels (B, E, h, w) -> logits (..., B, N, h, w)."""
    return (vectors @ pixels.flatten(2)).unflatten(-1, pixels.shape[2:])


if __name__ == "__main__":
    run = Run.start("mask-dino", pretrained=False)
    preset, benchmark = PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    scene = detectors.scenes_of(benchmark, "test", run.seeds[0])[:4]
    grid, pixels = Maps(preset, benchmark.canvas)(scene.images)
    shapes = {"tokens": grid, "pixels": pixels, "masks": masks_of(torch.rand(4, 5, preset.embedding), pixels)}
    run.show("maps", [{"of four images": name, "shape": str(tuple(each.shape))} for name, each in shapes.items()])

# %% [markdown]
# ## Queries are picked from the image, and look around their boxes
# The heads for class, box and mask read every token. The tokens with the best class scores become queries, with content and box
# (unified query selection). In a layer queries look at each other, then at a few points in and around their boxes (deformable
# attention). After each layer the same heads read them. Queries for denoising, below, are hidden from all others.


# %%
def concealed(queries: int, noised: int, device: torch.device) -> Tensor:
    """Who must not look at whom, (N + S, N + S): nobody sees a denoising query, which gives the answer away, but itself."""
    hidden = torch.arange(queries + noised, device=device) >= queries
    return hidden & ~torch.eye(queries + noised, dtype=torch.bool, device=device)


class MaskDINO(nn.Module):
    """Images -> what N queries say before the first and after each layer, (L + 1, B, N, .), and `pixels`."""

    def __init__(self, preset: Preset, benchmark: detectors.Benchmark) -> None:
        super().__init__()
        D, K = preset.width, benchmark.classes
        self.preset, self.maps = preset, Maps(preset, benchmark.canvas)
        self.pick = nn.Sequential(nn.Linear(D, D), nn.LayerNorm(D))
        self.layers = nn.ModuleList(DecoderLayer(D, preset.heads, preset.hidden) for _ in range(preset.layers))
        self.norm, self.label, self.class_head = nn.LayerNorm(D), nn.Embedding(K, D), nn.Linear(D, K)
        self.box_head, self.mask_head = MLP(D, [D, D, 4], inplace=None), MLP(D, [D, preset.embedding], inplace=None)
        points = grid_points(benchmark.canvas // 8)
        self.anchors = nn.Buffer(torch.cat([points, torch.full_like(points, PRIOR)], -1))  # (M, 4)
        nn.init.constant_(self.class_head.bias, -3.0)  # few queries have an object

    def select(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Content (B, N, D) and boxes (B, N, 4) of the tokens with the best class scores."""
        content = self.pick(grid.flatten(2).mT)  # (B, D, h, w) -> (B, M, D)
        best = self.class_head(self.norm(content)).amax(-1).topk(self.preset.queries).indices  # (B, N)
        return content.gather(1, best[..., None].expand(-1, -1, content.shape[2])), self.anchors[best]

    def read(self, content: Tensor, boxes: Tensor) -> Predictions:
        """What queries say: class, box corrected, vector of the mask."""
        state = self.norm(content)
        moved = (torch.logit(boxes, eps=1e-3) + self.box_head(state).float()).sigmoid()
        return Predictions(self.class_head(state).float(), moved, self.mask_head(state).float())

    def forward(self, images: Tensor, noised: Noised | None = None) -> tuple[Predictions, Predictions | None, Tensor]:
        """With `noised`, also what these say after each layer, (L, B, S, .), else None."""
        grid, pixels = self.maps(images)
        content, boxes = self.select(grid)
        said, N, hidden = [self.read(content, boxes)], boxes.shape[1], None
        boxes = said[0].boxes.detach()
        if noised is not None:
            content = torch.cat([content, self.label(noised.labels)], 1)  # (B, N + S, D)
            boxes = torch.cat([boxes, noised.boxes], 1)
            hidden = concealed(N, noised.boxes.shape[1], boxes.device)
        for layer in self.layers:
            content = layer(content, boxes, grid, hidden)
            said.append(self.read(content, boxes))
            boxes = said[-1].boxes.detach()
        found = (torch.stack([each[:, :N] for each in part]) for part in zip(*said, strict=True))
        others = (torch.stack([each[:, N:] for each in part[1:]]) for part in zip(*said, strict=True))
        return Predictions(*found), Predictions(*others) if noised is not None else None, pixels


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    said = (model := MaskDINO(preset, benchmark))(scene.images)[0]._asdict()
    run.show("shapes", [{"each layer, image, query": key, "shape": str(tuple(x.shape))} for key, x in said.items()])

# %% [markdown]
# ## Denoising: queries whose object is known
# In training, copies of the true boxes enter the decoder as further queries: shifted a little, to be moved back, or further, to
# be rejected. No matching has to find out whom they belong to, and in use they are left out.


# %%
def add_noise(targets: Targets, count: int, classes: int) -> Noised:
    """`count` queries for each image, which take its objects in turn; the second half, twice as far off, is to be rejected."""
    B, device = len(targets.labels), targets.labels.device
    index = torch.arange(count, device=device) % (targets.labels < classes).sum(1, keepdim=True)  # (B, S)
    middle, sides = targets.boxes.gather(1, index[..., None].expand(-1, -1, 4)).split(2, -1)
    rejected = torch.arange(count, device=device) >= count // 2
    sign = torch.randint(2, (B, count, 4), device=device) * 2 - 1
    shift = NOISE * sign * (torch.rand(B, count, 4, device=device) + rejected[:, None])
    moved = torch.cat([middle + shift[..., :2] * sides / 2, sides * (1 + shift[..., 2:])], -1)
    anew, drawn = torch.rand(B, count, device=device) < 0.2, torch.randint(classes, (B, count), device=device)
    labels = torch.where(anew, drawn, targets.labels.gather(1, index))  # labels are noised, too
    return Noised(moved.clamp(1e-3, 1 - 1e-3), labels, index.masked_fill(rejected, -1))


if __name__ == "__main__":
    true = targets_of(scene, benchmark.classes)
    noised = add_noise(true, 100, benchmark.classes)
    near = box_iou(*(xyxy_from_cxcywh(each[0]) for each in (noised.boxes, true.boxes))).amax(1)
    parts = {"to be moved back": near[noised.owner[0] >= 0], "to be rejected": near[noised.owner[0] < 0]}
    run.show("noise", [{"noised boxes": name, "IoU with a true one": x.mean().item()} for name, x in parts.items()])

# %% [markdown]
# ## Hybrid matching, and one loss for all tasks
# All other queries are matched one to one with the objects, at the lowest cost in class, box and mask together, so that box and
# mask of a query agree. Then each pays for the object that it has:
# $$\lambda_{cls} \mathcal{L}_{cls} + \lambda_{box} \mathcal{L}_{box} + \lambda_{mask} \mathcal{L}_{mask}$$


# %%
def mask_losses(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and Dice loss of every pair at P cells: (..., N, P) and (..., M, P) -> (..., N, M)."""
    entropy = (nn.functional.softplus(logits).sum(-1)[..., None] - logits @ masks.mT) / logits.shape[-1]
    p = logits.sigmoid()
    return entropy + 1 - (2 * p @ masks.mT + 1) / (p.sum(-1)[..., None] + masks.sum(-1)[..., None, :] + 1)


@torch.no_grad()
def match(said: Predictions, logits: Tensor, targets: Targets) -> Tensor:
    """owner (B, N), the object of each query, -1 for none; logits (B, N, P) of masks at P cells."""
    missing = targets.labels == said.logits.shape[-1]  # (B, M)
    labels = targets.labels.masked_fill(missing, 0)[:, None].expand(-1, logits.shape[1], -1)  # (B, N, M)
    ours, theirs = said.boxes[:, :, None], targets.boxes[:, None]
    cost = L1 * (ours - theirs).abs().sum(-1) - GIOU * generalized_iou(ours, theirs)
    cost = cost - CLASS * said.logits.sigmoid().gather(2, labels) + MASK * mask_losses(logits, targets.masks)
    return hungarian(cost.masked_fill(missing[:, None], torch.inf))


def set_loss(said: Predictions, pixels: Tensor, targets: Targets, owner: Tensor | None = None) -> Tensor:
    """All layers (L, B, ...), with pixels (B, E, P) and masks (B, M, P); queries are matched where no owner (B, N) is given.

    A focal loss of the classes of all queries, box and mask losses of those that have an object, each for an object.
    """
    L, logits = len(said.logits), (said.vectors @ pixels).flatten(0, 1)  # (L, B, N, P) -> (L B, N, P)
    said = Predictions(*(part.flatten(0, 1) for part in said))
    targets = Targets(*(part.repeat(L, *[1] * (part.ndim - 1)) for part in targets))
    owner = match(said, logits, targets) if owner is None else owner.repeat(L, 1)
    image, query = (owner >= 0).nonzero(as_tuple=True)
    mine, count = owner[image, query], max(1, len(image))
    wanted = torch.zeros_like(said.logits)
    wanted[image, query, targets.labels[image, mine]] = 1
    ours, theirs = said.boxes[image, query], targets.boxes[image, mine]  # (n, 4)
    boxes = L1 * (ours - theirs).abs().sum() + GIOU * (1 - generalized_iou(ours, theirs)).sum()
    masks = mask_losses(logits[image, query, None], targets.masks[image, mine, None])  # (n, 1, 1)
    return (CLASS * sigmoid_focal_loss(said.logits, wanted, reduction="sum") + boxes + MASK * masks.sum()) / count


def loss_of(model: MaskDINO, scenes: Any, denoise: bool = True) -> Tensor:
    """Queries and denoising queries pay alike. Masks are compared at some cells: those of objects, then others at random."""
    preset, K = model.preset, model.class_head.out_features
    targets = targets_of(scenes, K)
    noised = add_noise(targets, preset.noised, K) if denoise else None
    found, denoised, pixels = model(scenes.images, noised)
    covered = targets.masks.flatten(2).amax(1)  # (B, M, h, w) -> (B, h w)
    at = (covered + torch.rand_like(covered)).topk(preset.points).indices[:, None]  # (B, 1, P)
    pixels, masks = (each.flatten(2).gather(2, at.expand(-1, each.shape[1], -1)) for each in (pixels, targets.masks))
    targets = targets._replace(masks=masks)
    loss = set_loss(found, pixels, targets)
    return loss if denoised is None or noised is None else loss + set_loss(denoised, pixels, targets, noised.owner)


if __name__ == "__main__":
    paid = {name: loss_of(model, scene, name != "queries") for name in ("queries", "queries and denoising queries")}
    run.show("losses", [{"untrained": name, "loss": loss.item()} for name, loss in paid.items()])

# %% [markdown]
# ## Train it


# %%
@torch.inference_mode()
def find(model: MaskDINO, images: Tensor, layer: int = -1, masks: bool = False) -> list[dict[str, Tensor]]:
    """Boxes in pixels, scores and labels of each image after a layer, 0: before the first; `masks` (N, H, W) if asked for."""
    said, _, pixels = model(images)
    objects = said.objects(layer, images.shape[-1])
    if not masks:
        return objects
    enlarged = nn.functional.interpolate(masks_of(said.vectors[layer], pixels), scale_factor=2.0, mode="bilinear")
    return [each | {"masks": mask.sigmoid()} for each, mask in zip(objects, enlarged, strict=True)]


@cache
def train(run: Run, seed: int, rate: float, split: Any = "test") -> detectors.Trained[MaskDINO]:
    """A network for this seed, with the steps and scenes that all detectors share."""
    preset, benchmark = PRESETS[run.preset], detectors.BENCHMARKS[run.preset]
    seed_everything(seed)
    model, rate = MaskDINO(preset, benchmark), rate * preset.rate
    return detectors.train(run, benchmark, seed, model, loss_of, find, learning_rate=rate, what="queries", split=split)


if __name__ == "__main__":
    trained = train(run, run.seeds[0], RATE)
    run.show("trained", [{"steps": step, "AP of boxes (%)": ap} for step, ap in trained.curve[::3]])

# %% [markdown]
# ## One scene: from tokens to masks
# Of the test scenes with the most objects, the one whose nearest two are furthest apart.


# %%
def draw_masks(style: Style, image: Tensor, picked: Tensor, before: Any, after: Any) -> Figure:
    figure, axes = panels(2, 2, width=5.4, height=5.7)
    show_image(axes[0, 0], image, f"{len(picked)} tokens are picked")
    axes[0, 0].plot(*(picked.T * image.shape[-1] - 0.5), "o", markersize=7, color="white", markeredgecolor="black")
    show_image(axes[1, 0], after["masks"][0], "one vector times all pixels", cmap=style.sequential)
    for ax, found, title in ((axes[0, 1], before, "before the decoder"), (axes[1, 1], after, "after it")):
        show_image(ax, instances.tinted(image, found["masks"] > 0.5), title)
        draw_boxes(ax, found["boxes"])
    return figure


if __name__ == "__main__":
    model, boxes = trained.model.cpu(), trained.test.boxes
    full = [i for i, each in enumerate(boxes) if len(each) == max(map(len, boxes))]
    clear = max(full, key=lambda i: torch.pdist(boxes[i][:, :2] + boxes[i][:, 2:]).min())
    image = trained.test.images[clear, None]
    before, after = (find(model, image, layer, masks=True)[0] for layer in (0, -1))
    best = after["scores"].topk(len(boxes[clear])).indices
    before, after = ({name: each[best] for name, each in found.items()} for found in (before, after))
    picked = model.select(model.maps(image)[0])[1][0, :, :2]
    run.figure(
        "masks",
        partial(draw_masks, image=image[0], picked=picked, before=before, after=after),
        caption="The tokens that become queries, and boxes and masks of the surest of them, as many as there are digits, before "
        "and after the decoder. A mask is the dot product of one vector with every pixel.",
        alt="A scene four times: with dots on digits, with boxes and tinted masks before and after the decoder, and one mask.",
    )
    model.to(run.device)
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - No library publishes weights that load without Detectron2 and a compiled operator, so there is no picture of your own here.
# - A small convolutional backbone, trained from scratch, stands for ResNet-50 and the encoder; one scale instead of four, 12
#   queries instead of 300, one decoder layer instead of nine. Pixels have half of the resolution instead of a quarter.
# - Masks are compared at some cells, those of objects first; the paper's code draws them by uncertainty. Denoising queries do
#   not see each other. Boxes are not initialized from masks; the experiments measure what that would give.
# - All digits are one class in the small runs, so only boxes are noised, and it is easy to tell whom a query belongs to.
# - Everything is trained for seconds on scenes of 64 px. What holds here explains a mechanism; it says nothing about COCO.
