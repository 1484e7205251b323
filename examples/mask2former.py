# %% [markdown]
# # Mask2Former: what is it worth to read only inside the mask that is already there?
#
# A set of queries becomes a set of masks, each with a class, for countable things and for stuff alike. In each layer a query
# reads the picture only inside the mask that it predicted one layer before. The experiments train it with and without that.
#
# | symbol (arXiv:2112.01527) | here | meaning |
# |---|---|---|
# | $X_l$ | `queries` | query features after layer $l$, (B, N, D); $X_0$ is learned |
# | $K_l, V_l$ | `tokens` | one map of the picture, (B, T, D), from coarse to fine |
# | $\mathcal{M}_{l-1}$ | `outside` | where a query must not read, (B, N, T) |
# | | `pixels` | embedding of each pixel at half the resolution, (B, P, D) |
# | | `Masks` | logits of classes (..., N, K + 1), the last one for no object, and of masks (..., N, P) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import hungarian
from lab import panoptic, training, weights
from lab.data import Split, yards
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from sam3 import overlap_loss
from torch import Tensor, nn
from torchvision.ops import MLP

RATE, PIXELS = 8e-3, 5e-3  # learning rates: see claims/mask2former.searches.json; of the pixels, the same for all
CLASS, EMPTY = 2.0, 0.1  # weight of the class loss, and in it of no object; masks weigh as in SAM 3 (Section 4.1)
K = len(yards.CLASSES)
PUBLISHED = "facebook/mask2former-swin-tiny-coco-panoptic"
STRIDES = (8, 4)  # of the maps that layers read in turn
SYNCHRONISATIONS_PER_STEP = 2  # costs go to the Hungarian algorithm on the CPU, the assignment comes back


class Preset(NamedTuple):
    """Steps and scenes in a step, steps that teach the pixels, D, heads, rounds over the maps, queries, pixels of each scene that
    the loss looks at, numbers of training and test scenes, factor on the rates."""

    steps: int = 400
    batch: int = 8
    taught: int = 300
    width: int = 32
    heads: int = 4
    rounds: int = 1
    queries: int = 12
    points: int = 192
    scenes: tuple[int, int] = (1000, 200)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(4, 4, 4, 16, 2, scenes=(16, 12)),
    "quick": Preset(),
    "full": Preset(8000, 64, 4000, 192, 8, 4, 40, scenes=(4000, 1000), rate=0.25),
}

# %% [markdown]
# ## Things and stuff are masks, both
# A yard has two kinds of ground, which is stuff, and some things. Every pixel belongs to one segment, and every segment has a
# class. In the place of a pretrained backbone stands a small network that was taught to say the class of a pixel and the way
# to the middle of its thing. Then it is frozen, and serves everything below.


# %%
scenes = cache(yards.yards)


@cache
def taught_pixels(run: Run) -> panoptic.Pixels:
    """The frozen network, trained on scenes of its own."""
    preset, seed = PRESETS[run.preset], 1000
    shown = yards.yards("train", 2 * preset.scenes[0], seed)
    return panoptic.trained_pixels(
        *shown, classes=K, things=len(yards.THINGS), width=preset.width, batch=16, steps=preset.taught, rate=PIXELS * preset.rate,
        seed=seed, device=run.device,
    )  # fmt: skip


@cache
def seen(run: Run, split: Split, seed: int) -> Tensor:
    """Features (n, 2 D, S / 2, S / 2) of the scenes of a split."""
    count = PRESETS[run.preset].scenes[split != "train"]
    return panoptic.features(taught_pixels(run), scenes(split, count, seed).images)


if __name__ == "__main__":
    run = Run.start("mask2former", pretrained=True)
    preset = PRESETS[run.preset]
    test, features = scenes("test", preset.scenes[1], run.seeds[0]), seen(run, "test", run.seeds[0])
    kinds, _ = panoptic.taught(test.labels, test.masks, K)
    right = taught_pixels(run).head(features[:, : preset.width])[:, :K].argmax(1).cpu() == kinds.argmax(1)
    thing = kinds[:, : len(yards.THINGS)].sum(1) > 0.5
    run.show("pixels", [{"pixels of": name, "class is right (%)": 100 * right[where].float().mean().item()}
                        for name, where in (("things", thing), ("stuff", ~thing))])  # fmt: skip

# %% [markdown]
# ## Read only inside
# The mask of the layer before, brought to the size of a map, is a mask of the attention (Eqs. 2 and 3). A query whose mask is
# empty may read everything. The first masks come from the learned queries, before any layer.
# $$X_l = \mathrm{softmax}(\mathcal{M}_{l-1} + Q_l K_l^{\top}) V_l + X_{l-1}, \qquad
# \mathcal{M}_{l-1}(x) = \begin{cases} 0 & m_{l-1}(x) \geq 0.5 \\ -\infty & \text{else} \end{cases}$$


# %%
Outside = Callable[[Tensor], Tensor | None]


def outside_of(logits: Tensor) -> Tensor:
    """Where each query must not read: logits of its mask in cells of a map (B, N, T) -> (B, N, T), nowhere if it is empty."""
    inside = logits > 0
    return ~inside & inside.any(-1, keepdim=True)


class Layer(nn.Module):
    """Queries (B, N, D) with places of their own read tokens (B, T, D), then look at each other (Section 3.2.1)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, attention = heads, partial(nn.MultiheadAttention, width, heads, batch_first=True)
        self.read, self.among, self.mlp = attention(), attention(), MLP(width, [2 * width, width], inplace=None)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, queries: Tensor, place: Tensor, tokens: Tensor, outside: Tensor | None) -> Tensor:
        mask = None if outside is None else outside.repeat_interleave(self.heads, 0)  # (B heads, N, T)
        x = self.norms[0](queries + self.read(queries + place, tokens, tokens, attn_mask=mask, need_weights=False)[0])
        x = self.norms[1](x + self.among(x + place, x + place, x, need_weights=False)[0])
        return self.norms[2](x + self.mlp(x))


if __name__ == "__main__":
    disc = (1 - torch.hypot(*torch.meshgrid(*[torch.linspace(-1.5, 1.5, 24)] * 2, indexing="xy")))[None, None]
    free = ~outside_of(nn.functional.avg_pool2d(disc, 4).flatten(2))[0, 0].unflatten(0, (6, 6))
    run.show("inside", "where a query with a disc for a mask reads a map of 6 x 6:\n"
             + "\n".join("".join(" #" if each else " ." for each in row) for row in free.tolist()))  # fmt: skip

# %% [markdown]
# ## A mask is a query times the pixels
# A query says a class, and its mask is the dot product of a vector with the embedding of each pixel,
# $m_n(x) = \sigma(\mathrm{MLP}(X_n)^\top E(x))$. Layers take turns on two maps, a coarse and a fine one; each layer is read out.


# %%
class Masks(NamedTuple):
    """Logits of classes (..., N, K + 1), the last one for no object, and of masks (..., N, P)."""

    classes: Tensor
    masks: Tensor


def coarse(pixels: Tensor, cells: int) -> Tensor:
    """The mean of each cell of so many pixels a side, (B, h, w, D) -> (B, T, D)."""
    return nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), cells).flatten(2).mT


class Mask2Former(nn.Module):
    """Features (B, 2 D, h, w) -> masks of the learned queries and after every layer at all pixels, or at some, `at` (B, P)."""

    def __init__(self, preset: Preset, outside: Outside = outside_of) -> None:
        super().__init__()
        width, self.outside = preset.width, outside
        self.mix, self.pixels = MLP(2 * width, [width, width], inplace=None), nn.Linear(width, width)
        self.maps = nn.ModuleList(nn.Linear(width, width) for _ in STRIDES)
        self.queries, self.places = (nn.Parameter(torch.randn(preset.queries, width)) for _ in range(2))
        self.layers = nn.ModuleList(Layer(width, preset.heads) for _ in range(len(STRIDES) * preset.rounds))
        self.norm, self.name = nn.LayerNorm(width), nn.Linear(width, K + 1)
        self.mask = MLP(width, [width, width], inplace=None)

    def forward(self, features: Tensor, at: Tensor | None = None) -> Masks:
        fine = self.mix(features.permute(0, 2, 3, 1))  # (B, h, w, D)
        pixels, queries = self.pixels(fine), self.queries.expand(len(features), -1, -1)
        known = [self.norm(queries)]
        for index, layer in enumerate(self.layers):
            scale = index % len(STRIDES)
            cells, places = (coarse(each, STRIDES[scale] // 2) for each in (fine, pixels))  # (B, T, D)
            outside = self.outside((self.mask(known[-1]) @ places.mT).detach())
            queries = layer(queries, self.places, self.maps[scale](cells), outside)
            known.append(self.norm(queries))
        states, pixels = torch.stack(known), pixels.flatten(1, 2)  # (L + 1, B, N, D), (B, h w, D)
        if at is not None:
            pixels = pixels.gather(1, at[..., None].expand(-1, -1, pixels.shape[2]))
        return Masks(self.name(states).float(), (self.mask(states) @ pixels.mT).float())


if __name__ == "__main__":
    training.seed_everything(run.seeds[0])
    said = Mask2Former(preset)(features[:2].cpu())
    run.show("shapes", [{"of layers, pictures, queries": name, "shape": str(tuple(each.shape))}
                        for name, each in said._asdict().items()])  # fmt: skip

# %% [markdown]
# ## Masks are matched one to one
# As in DETR, each segment is matched with one query, here by class and mask. A matched query pays for both, the others for not
# saying "no object". All layers pay alike, and so do the learned queries. Below, what a query pays for the mask of a disc.


# %%
def set_loss(found: Masks, labels: Tensor, masks: Tensor) -> Tensor:
    """Class and mask losses of a batch, matched anew; labels (B, M), K where padded, and masks (B, M, P) from 0 to 1."""
    pairs = overlap_loss(found.masks, masks)  # (B, N, M)
    chance = found.classes.softmax(-1).gather(2, labels[:, None].expand(-1, pairs.shape[1], -1))
    owner = hungarian((pairs - CLASS * chance).detach().masked_fill(labels[:, None] == K, torch.inf))  # (B, N)
    matched, index = owner >= 0, owner.clamp(min=0)
    said = nn.functional.cross_entropy(found.classes.mT, labels.gather(1, index).where(matched, K), reduction="none")
    weight = torch.where(matched, 1.0, EMPTY)
    paid = pairs.gather(2, index[..., None])[..., 0] * matched
    return CLASS * (weight * said).sum() / weight.sum() + paid.sum() / matched.sum().clamp(min=1)


if __name__ == "__main__":
    truth = (disc > 0).float().flatten(2)
    guesses = {"it": disc, "its half": disc.where(torch.arange(24) < 12, -1), "everything": torch.ones_like(disc)}
    price = {name: overlap_loss(90 * each.flatten(2), truth).item() for name, each in guesses.items()}
    run.show("price", [{"mask of": name, "loss": each} for name, each in price.items()])

# %% [markdown]
# ## Train it
# Panoptic quality is measured as in the paper: each pixel goes to the query that claims it most, a segment is right if its class
# is and its IoU is above one half, and for each class $\mathrm{PQ} = \sum_{TP} \mathrm{IoU} / (TP + FP / 2 + FN / 2)$.


# %%
def loss_of(model: nn.Module, features: Tensor, labels: Tensor, masks: Tensor, *, points: int) -> Tensor:
    """The mean over the layers, from some pixels of each picture; labels (B, M), masks (B, M, h, w)."""
    at = torch.rand(masks.flatten(2)[:, 0].shape, device=masks.device).topk(points).indices  # (B, P)
    said = model(features, at)
    layers, L = Masks(*(each.flatten(0, 1) for each in said)), len(said.classes)  # (L, B, ...) -> (L B, ...)
    true = masks.flatten(2).gather(2, at[:, None].expand(-1, masks.shape[1], -1))
    return set_loss(layers, labels.repeat(L, 1), true.repeat(L, 1, 1))


@torch.inference_mode()
def look(model: nn.Module, features: Tensor, layers: slice = slice(None)) -> Masks:
    """What is said of any number of pictures, (L + 1, n, N, ...), on the CPU; masks as probabilities of all S x S pixels."""
    said = [model(part) for part in features.split(50)]
    classes, logits = (torch.cat([each[layers].cpu() for each in part], 1) for part in zip(*said, strict=True))
    small = logits.flatten(0, 1).unflatten(2, features.shape[2:])
    large = nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear").sigmoid()
    return Masks(classes, large.unflatten(0, logits.shape[:2]))


def quality(said: Masks, truth: yards.Yards, layer: int = -1) -> tuple[float, float, float]:
    """Panoptic quality (%) of all classes, of things and of stuff, after a layer."""
    found = panoptic.segments(said.classes[layer], said.masks[layer])
    pq = panoptic.panoptic_quality(*found, truth.labels, truth.masks, K)
    return pq.nanmean().item(), pq[: len(yards.THINGS)].nanmean().item(), pq[len(yards.THINGS) :].nanmean().item()


Trained = tuple[Mask2Former, list[tuple[int, float]]]


@cache
def train(run: Run, seed: int, rate: float, outside: Outside = outside_of, split: Split = "test") -> Trained:
    """A network for this seed, and its PQ (%) on the scenes of the split after so many steps."""
    preset, curve = PRESETS[run.preset], list[tuple[int, float]]()
    truth, features = scenes(split, preset.scenes[1], seed), seen(run, split, seed)
    _, labels, masks = scenes("train", preset.scenes[0], seed)
    data = [seen(run, "train", seed), labels.to(run.device), nn.functional.avg_pool2d(masks.float(), 2).to(run.device)]
    training.seed_everything(seed)
    model = Mask2Former(preset, outside)
    batches = training.minibatches(data, preset.batch, preset.steps, seed)
    training.fit(model, batches, partial(loss_of, points=preset.points), steps=preset.steps, learning_rate=rate * preset.rate,
        schedule="constant", device=run.device, every=-(-preset.steps // 4),
        callback=lambda step, model: curve.append((step, quality(look(model, features, slice(-1, None)), truth)[0])))  # fmt: skip
    return model, curve


if __name__ == "__main__":
    model, curve = train(run, run.seeds[0], RATE)
    run.show("trained", [{"steps": step, "PQ on test scenes (%)": each} for step, each in curve])

# %% [markdown]
# ## From guess to mask, layer by layer
# The test scene in which the layers change the masks most for the better. Each row is the query that ends on one of its things;
# the bright part is its mask, and so what it reads next. Before the first layer it knows nothing of the picture.


# %%
def draw_layers(style: Style, image: Tensor, masks: Tensor, things: Tensor) -> Figure:
    """A row for each of the things (M, S, S) of an image (3, S, S), with masks (L + 1, N, S, S) of queries."""
    figure, axes = panels(len(things), len(masks) + 1, width=5.4, height=1.45 * len(things) + 0.3)
    best = panoptic.overlaps(masks[-1:] > 0.5, things[None])[0].argmax(0)
    for row, (line, query, thing) in enumerate(zip(axes, best, things, strict=True)):
        for layer, (ax, part) in enumerate(zip(line, [thing, *(masks[:, query] > 0.5)], strict=True)):
            title = f"after layer {layer - 1}" if layer > 1 else ("a thing", "before")[layer]
            show_image(ax, image * (0.3 + 0.7 * part), None if row else title)
    return figure


if __name__ == "__main__":
    said = look(model, features)
    labels, pixels = panoptic.segments(said.classes[-1], said.masks[-1])
    before, after = (panoptic.overlaps(said.masks[layer] > 0.5, test.masks[:, :3]) for layer in (0, -1))  # (n, N, 3)
    gain = after.amax(1) - before.gather(1, after.argmax(1, keepdim=True))[:, 0]  # of the query that ends on each thing
    best = int(gain.amin(1).argmax())
    draw = partial(draw_layers, image=test.images[best], masks=said.masks[:, best], things=test.masks[best, :3])
    run.figure("layers", draw, alt="Three rows of one scene: a thing, and a bright part that becomes the thing.",
               caption="Masks before the first layer, as learned queries give them, and after each layer, in the test scene in "
               "which they gain most.")  # fmt: skip
    names = [[yards.CLASSES[label] if label < K else "" for label in scene] for scene in labels[:3]]
    run.figure("segments", partial(panoptic.draw_segments, images=test.images[:3], masks=pixels[:3], names=names),
               caption="The first test scenes and their segments. A colour is a query; one head names things and stuff.",
               alt="Three scenes of shapes on two kinds of ground, and below each a map of named segments.")  # fmt: skip

# %% [markdown]
# ## Your own image
# The published Mask2Former with a Swin-T for panoptic segmentation, from the hub of transformers, on a photograph or on yours.


# %%
@torch.inference_mode()
def published(image: Any) -> tuple[Tensor, Tensor, list[list[str]]]:
    """The photograph (1, 3, H, W), the masks of its segments (1, n, H, W), and the class of each."""
    from torchvision.transforms.functional import to_tensor
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    processor = AutoImageProcessor.from_pretrained(PUBLISHED)
    network = Mask2FormerForUniversalSegmentation.from_pretrained(PUBLISHED).eval()
    outputs = network(**processor(image, return_tensors="pt"))
    (said,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(image.height, image.width)])
    masks = [said["segmentation"] == each["id"] for each in said["segments_info"]]
    names = [network.config.id2label[each["label_id"]] for each in said["segments_info"]]
    return to_tensor(image)[None], torch.stack(masks)[None], [names]


if __name__ == "__main__":
    photograph = weights.picture(run, "coffee")
    found = weights.published(run, PUBLISHED, partial(published, photograph), megabytes=190)
    if found is not None:
        run.figure("your_own_image", partial(panoptic.draw_segments, images=found[0], masks=found[1], names=found[2]),
                   caption=f"The segments that {PUBLISHED} finds.",
                   alt="A photograph, and a map of its segments: " + (", ".join(found[2][0]) or "none"))  # fmt: skip
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A small network that was taught classes and middles of things stands for the pretrained backbone, and a perceptron for each
#   pixel for the pixel decoder with deformable attention. The places of things are in these features, not added to keys.
# - Two layers, two maps and 12 queries instead of nine, three and 100. All strides are half of those of the paper.
# - Masks are brought to the size of a map by the mean. Loss and matching share their points, which are drawn at random.
# - Three shapes and three kinds of ground. What holds here explains a mechanism; it says nothing about COCO.
