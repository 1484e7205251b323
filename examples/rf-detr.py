# %% [markdown]
# # RF-DETR: what of a detector can be left out after training?
#
# A detector is trained once, and then has to be as fast as its device asks. RF-DETR takes its queries from the map in the order
# of their scores, and every decoder layer carries a loss: so the last queries and the last layers can be left out afterwards.
# Here is such a decoder, trained on shapes on photographs; the experiments leave out what was, and what was not, trained for it.
#
# | symbol (card, arXiv:2511.09554) | here | meaning |
# |---|---|---|
# | $z_m$ | `tokens` | position $m$ of the map of the backbone, (B, M, D) |
# | $s_m$ | `scores` | how much more $z_m$ looks like an object than like none, (B, M) |
# | $b^0_n$ | `boxes` | the box that the position of query $n$ proposes, cxcywh from 0 to 1 |
# | $q^l_n$ | `x` | query $n$ after decoder layer $l$, (B, N, D) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import Predictions, matching_cost, set_loss
from lab import boxes, matching, metrics, stacked, weights
from lab.data.named import NAMES, SIDE, Named, named
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.run import Run
from lab.training import fit, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP

RATE = 4e-3  # peak learning rate, see claims/rf-detr.searches.json
EMPTY = 0.3  # weight of the class loss of no object
SURE = 0.5  # least score of a box that is drawn
SYNCHRONISATIONS_PER_STEP = 0  # scenes lie on the device, and objects are matched there


class Preset(NamedTuple):
    """Of the network, its decoder and its queries; steps, batch, scenes of each split, and a factor on the rate."""

    width: int = 32
    heads: int = 4
    hidden: int = 64
    layers: int = 3
    queries: int = 12
    steps: int = 300
    batch: int = 16
    scenes: tuple[int, int, int] = (1200, 100, 150)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(16, 2, 16, 2, steps=2, batch=2, scenes=(8, 4, 6)),
    "quick": Preset(),
    "full": Preset(128, 8, 512, 6, 24, 8000, 64, (20_000, 500, 1000), rate=0.1),
}

# %% [markdown]
# ## Queries come from the map, best first; every layer refines the same proposal
# Each position of the map says what it sees and proposes a box. The $N$ that look most like an object become the queries, in
# the order of their scores:
# $$s_m = \max_c \ell_m(c) - \ell_m(\varnothing), \qquad q^0_n = z_{m_n} \quad \text{with}\quad s_{m_1} \ge s_{m_2} \ge \dots$$
# A layer lets the queries look at each other and at the map. One pair of heads reads them after each layer, and every box is a
# correction of the proposal, not of the layer before: $b^l_n = \sigma(\sigma^{-1}(b^0_n) + \Delta(q^l_n))$. So the answer of
# each layer is complete.


# %%
class RFDETR(nn.Module):
    """Images (B, 3, H, W) -> predictions of N queries, proposals first: (L + 1, B, N, K + 1) and (L + 1, B, N, 4)."""

    def __init__(self, preset: Preset, classes: int = 1) -> None:
        super().__init__()
        width, self.queries = preset.width, preset.queries
        steps = ((3, width // 2), (width // 2, width), (width, width))
        self.backbone = nn.Sequential(*(part for each in steps for part in halved(*each)))
        points = boxes.grid_points(SIDE // 8)  # (M, 2)
        self.place = nn.Parameter(boxes.sine_encoding(points, width))  # learned, but they start in order
        self.anchors = nn.Parameter(torch.logit(torch.cat([points, torch.full_like(points, 0.25)], 1)))  # (M, 4)
        self.look = nn.TransformerEncoderLayer(width, preset.heads, preset.hidden, dropout=0.0, batch_first=True)
        layer = partial(nn.TransformerDecoderLayer, width, preset.heads, preset.hidden, dropout=0.0, batch_first=True)
        self.decoder = nn.ModuleList(layer() for _ in range(preset.layers))
        self.of_box = MLP(4, [width, width], inplace=None)  # where a query is
        self.class_heads = nn.ModuleList(nn.Linear(width, classes + 1) for _ in range(2))  # proposals, decoder
        self.box_heads = nn.ModuleList(MLP(width, [width, width, 4], inplace=None) for _ in range(2))

    def forward(self, images: Tensor, layers: int | None = None, ranks: Tensor | None = None) -> Predictions:
        """With the first so many layers, and the queries of such ranks (n,) only; all where None."""
        tokens = self.look(self.backbone(images).flatten(2).mT + self.place)  # (B, M, D)
        logits, boxes = self.class_heads[0](tokens), self.anchors + self.box_heads[0](tokens)
        scores = logits[..., :-1].max(-1).values - logits[..., -1]
        best = scores.topk(self.queries, 1).indices  # (B, N), best first
        best = best if ranks is None else best[:, ranks]
        x, logits, boxes = (
            each.gather(1, best[..., None].expand(-1, -1, each.shape[2])) for each in (tokens, logits, boxes)
        )
        said, place = [(logits, boxes)], self.of_box(boxes.detach().sigmoid())
        for layer in self.decoder[:layers]:
            x = layer(x + place, tokens)
            said.append((self.class_heads[1](x), boxes.detach() + self.box_heads[1](x)))
        every = [torch.stack(each).float() for each in zip(*said, strict=True)]
        return Predictions(every[0], every[1].sigmoid())


def halved(inputs: int, width: int) -> list[nn.Module]:
    """Half the side: (B, inputs, H, W) -> (B, width, H / 2, W / 2); a norm without running means."""
    return [nn.Conv2d(inputs, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU()]


if __name__ == "__main__":
    run = Run.start("rf-detr", pretrained=True)
    preset = PRESETS[run.preset]
    seed_everything(run.seeds[0])
    model, images = RFDETR(preset), torch.rand(2, 3, SIDE, SIDE)
    few = torch.arange(preset.queries // 2)
    kinds: dict[str, dict[str, Any]] = {"all": {}, "half of the layers": {"layers": preset.layers // 2},
                                        "half of the queries": {"ranks": few}}  # fmt: skip
    run.show("shapes", [{"of two images": name, "boxes": str(tuple(model(images, **each).boxes.shape))}
                        for name, each in kinds.items()])  # fmt: skip

# %% [markdown]
# ## A loss on every layer
# The set loss of the example `detr` (matching one to one, then class and box) is taken for the proposals and after every decoder
# layer, $\mathcal L = \frac{1}{L + 1} \sum_{l=0}^{L} \mathcal L_{\mathrm{set}}(\hat y^l, y)$. Networks of all seeds are trained
# side by side.


# %%
Paid = Callable[[int], slice]  # from the number of outputs, proposals first, to those that carry a loss


def every_layer(outputs: int) -> slice:
    return slice(outputs)


def loss_of(networks: nn.Module, images: Tensor, places: Tensor, labels: Tensor, paid: Paid) -> Tensor:
    """Of G networks: images (G, B, 3, H, W), boxes as places (G, B, M, 4), labels (G, B, M), K where there is no object."""
    said = [each[:, paid(each.shape[1])] for each in networks(images)]  # (G, l, B, ...)
    predictions, layers = Predictions(*(each.flatten(0, 2) for each in said)), said[0].shape[1]
    both = (each[:, None].expand(-1, layers, *each.shape[1:]).flatten(0, 2) for each in (places, labels))
    targets = boxes.Targets(*both)
    return set_loss(predictions, targets, matching.few_to_one(matching_cost(predictions, targets)), EMPTY)


def scenes_of(run: Run, split: Any, seed: int) -> Named:
    """Scenes of one to three things of one class, 0; 1 where there is none."""
    count = dict(zip(("train", "val", "test"), PRESETS[run.preset].scenes, strict=True))[split]
    made = named(split, count, seed, range(len(NAMES)))
    return made._replace(labels=(made.labels == len(NAMES)).long())


@cache
def train(run: Run, seeds: tuple[int, ...], paid: Paid = every_layer, rate: float = RATE) -> stacked.Stacked:
    """One network for each seed, with scenes and weights of its own."""
    preset, made = PRESETS[run.preset], [scenes_of(run, "train", seed) for seed in seeds]
    data = [torch.stack(each).to(run.device) for each in list(zip(*made, strict=True))[:3]]  # (G, S, ...)
    order = torch.stack([torch.randint(preset.scenes[0], (preset.steps, preset.batch),
                                       generator=torch.Generator().manual_seed(seed)) for seed in seeds], 1)  # fmt: skip
    order, own, networks = order.to(run.device), torch.arange(len(seeds), device=run.device)[:, None], []
    for seed in seeds:
        seed_everything(seed)
        networks.append(RFDETR(preset))
    together = stacked.Stacked(networks)
    fit(together, lambda step: [each[own, order[step]] for each in data], partial(loss_of, paid=paid),
        steps=preset.steps, learning_rate=rate * preset.rate, clip=None, device=run.device)  # fmt: skip
    return together


@torch.inference_mode()
def predicted(networks: stacked.Stacked, images: Tensor, **less: Any) -> list[Predictions]:
    """Of each network what it says after every layer, on the CPU: images (G, n, 3, H, W), a set for each."""
    said = networks(images.to(networks.weights[0].device), **less)
    return [Predictions(logits.cpu(), boxes.cpu()) for logits, boxes in zip(*said, strict=True)]


def found_in(said: Predictions, layer: int, suppress: bool = False) -> list[dict[str, Tensor]]:
    """Boxes in pixels, scores and labels of each image after a layer (0: the proposals)."""
    scores, labels = said.logits[layer].softmax(-1)[..., :-1].max(-1)
    parts = zip(boxes.xyxy_from_cxcywh(said.boxes[layer]) * SIDE, scores, labels, strict=True)
    found = [dict(zip(("boxes", "scores", "labels"), each, strict=True)) for each in parts]
    return [boxes.suppressed(each) for each in found] if suppress else found


def ap(said: Predictions, layer: int, scenes: Named, suppress: bool = False) -> float:
    """AP in %, mean over IoUs from 0.5 to 0.95."""
    truth = [{"boxes": boxes.xyxy_from_cxcywh(places)[there] * SIDE, "labels": labels[there]}
             for places, labels, there in zip(scenes.boxes, scenes.labels, scenes.labels == 0, strict=True)]  # fmt: skip
    return 100 * metrics.average_precision(found_in(said, layer, suppress), truth, sizes=None)["ap"]


if __name__ == "__main__":
    networks, test = train(run, run.seeds, every_layer, RATE), [scenes_of(run, "test", seed) for seed in run.seeds]
    images = torch.stack([each.images for each in test])
    said = predicted(networks, images)
    run.show("trained", [{"decoder layers": layer, "AP on test scenes (%)": ap(said[0], layer, test[0])}
                         for layer in range(preset.layers + 1)])  # fmt: skip

# %% [markdown]
# ## Fewer layers, fewer queries
# The same network, not trained again: after each number of layers, and with the best half of its queries or a half at random.


# %%
def draw_less(style: Style, images: Tensor, rows: dict[str, list[dict[str, Tensor]]]) -> Figure:
    """Scenes (n, 3, H, W) in columns; in each row what one kind of detector is sure of."""
    figure, axes = panels(len(rows), len(images), width=5.4, height=1.32 * len(rows))
    for row, (name, found) in zip(axes, rows.items(), strict=True):
        for ax, image, each in zip(row, images, found, strict=True):
            show_image(ax, image)
            draw_boxes(ax, each["boxes"][each["scores"] >= SURE])
        row[0].text(-0.08, 0.5, name, rotation=90, ha="right", va="center", transform=row[0].transAxes, fontsize=9)
    return figure


if __name__ == "__main__":
    some, half = images[:, :4], torch.arange(preset.queries // 2)
    shown = {"proposals\nonly": found_in(said[0], 0)[:4], "one layer": found_in(said[0], 1)[:4],
             "all layers": found_in(said[0], preset.layers)[:4],
             "half of\nthe queries": found_in(predicted(networks, some, ranks=half)[0], preset.layers)}  # fmt: skip
    run.figure(
        "less",
        partial(draw_less, images=some[0], rows=shown),
        caption="The first four test scenes: boxes with a score of at least one half, from one network after none, one and all "
        "of its decoder layers, and with the better half of its queries. It was trained once, for a few hundred steps, and some "
        "shapes have two boxes.",
        alt="Four scenes in four rows: boxes around shapes after no, one and all layers, and with half of the queries.",
    )

# %% [markdown]
# ## Your own image
# The published RF-DETR-N, from the hub of transformers, on a photograph of scikit-image or on yours; nothing is suppressed.


# %%
def published(image: Any) -> weights.Boxes:
    from transformers import AutoImageProcessor, RfDetrForObjectDetection

    name = "Roboflow/rf-detr-nano"
    processor, network = AutoImageProcessor.from_pretrained(name), RfDetrForObjectDetection.from_pretrained(name)
    raw = network.eval()(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(raw, threshold=0.5, target_sizes=[image.size[::-1]])
    return found["boxes"], [network.config.id2label[int(label)] for label in found["labels"]]


if __name__ == "__main__":
    weights.show_boxes(run, "Roboflow/rf-detr-nano", published, megabytes=125, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A small convolutional backbone from scratch in place of a pretrained DINOv2; pretraining is not tested.
# - Plain attention to all positions in place of deformable attention; queries start from their positions' tokens; one group.
# - The set loss of the example `detr` in place of a focal one; one class, three shapes at most.
# - No search over resolutions and patches, and no random configuration at each step.
