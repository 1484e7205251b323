# %% [markdown]
# # D-FINE: does a box come out more exact if each layer refines distributions of its edges, and not four numbers?
#
# A decoder finds a box in several looks. In D-FINE each look adds to the logits of four distributions, one for each edge, over
# steps that are fine near the first guess. The experiments put four plain numbers, and even steps, into the same decoder.
#
# | symbol (arXiv:2410.13842) | here | meaning |
# |---|---|---|
# | $W(n)$, $N$ | `weighting`, `N` | how far step $n$ of $0 \dots N$ moves an edge, in sides of the box |
# | $\mathrm{Pr}^l(n)$ | `edges.softmax(-1)` | how likely layer $l$ finds each step, for each edge, (..., 4, N + 1) |
# | $b^0$, $d^0$ | `Said.start` | the first box, and the distances of its edges from its centre |
# | $d^l$ | `moved` | distances of the edges after layer $l$ |
# | $\phi$ | `steps_to` | the step that leads from $d^0$ to the true edge |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import metrics, weights
from lab.boxes import cxcywh_from_xyxy, generalized_iou, xyxy_from_cxcywh
from lab.data.soft import SIDE, Soft, soft
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.run import Run
from lab.training import fit, minibatches, seed_everything
from matplotlib.collections import LineCollection
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation

N, A, C = 32, 0.5, 0.25  # steps, and the two constants of W(n)
L1, GIOU, FGL = 5.0, 2.0, 0.15  # weights of the losses of boxes and edges
RATE = 8e-3  # peak learning rate: see claims/d-fine.searches.json
SYNCHRONISATIONS_PER_STEP = 0


class Preset(NamedTuple):
    """Steps, scenes in a step, D, hidden width, L, numbers of training and test scenes, factor on the rate."""

    steps: int = 280
    batch: int = 32
    width: int = 48
    hidden: int = 96
    layers: int = 3
    scenes: tuple[int, int] = (3000, 300)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(3, 4, 16, 16, 2, (16, 24)),
    "quick": Preset(),
    "full": Preset(12_000, 256, 192, 768, 6, (60_000, 2000), 0.25),
}

# %% [markdown]
# ## Steps that are fine in the middle
# Each edge may move by one of $N + 1$ steps, measured in sides of the first box. For $1 \leq n \leq N/2$
# $$W(n) = c - c \, (a/c + 1)^{(N - 2n) / (N - 2)}, \qquad W(0) = -2a,$$
# and the other half is its mirror image, with $a = 1/2$ and $c = 1/4$ (Section 4.1). From a box that is nearly right the steps
# are small; a wrong one can still move far.


# %%
def weighting(steps: int = N, a: float = A, c: float = C) -> Tensor:
    """W(n) for n = 0 ... N, growing, (N + 1,)."""
    outwards = 2 * torch.arange(steps + 1.0) - steps  # -N ... N
    W = outwards.sign() * (c * (a / c + 1) ** (outwards.abs() / (steps - 2)) - c)
    W[0], W[-1] = -2 * a, 2 * a
    return W


if __name__ == "__main__":
    run = Run.start("d-fine", pretrained=True)
    W = weighting()
    shown = (0, 1, N // 4, N // 2 - 1, N // 2, 3 * N // 4, N - 1)
    run.show("weighting", [{"n": n, "W(n)": W[n].item(), "to the next step": (W[n + 1] - W[n]).item()} for n in shown])

# %% [markdown]
# ## Edges as distributions, and what they learn
# After layer $l$ an edge lies at the mean over all steps. Layers add to the logits; the first box stays the origin:
# $$d^l = d^0 + \{H, H, W, W\} \cdot \sum_n W(n) \, \mathrm{Pr}^l(n), \qquad
# \mathrm{Pr}^l = \mathrm{softmax}(\mathrm{logits}^{l-1} + \Delta\mathrm{logits}^l)$$
# The true edge needs the step $\phi$, between two steps of the list. Both learn it, the nearer one more (fine-grained
# localization loss, FGL): $-\left(\omega_\leftarrow \log \mathrm{Pr}(n_\leftarrow) + \omega_\rightarrow \log
# \mathrm{Pr}(n_\rightarrow)\right)$. Below, a distribution grows narrower around the right step.


# %%
def moved(start: Tensor, edges: Tensor, W: Tensor) -> Tensor:
    """Boxes cxcywh (..., 4) from first ones, and logits (..., 4, N + 1) of the steps of left, upper, right and lower edge."""
    away = (0.5 + edges.softmax(-1) @ W).clamp(min=0.01) * torch.cat([start[..., 2:]] * 2, -1)  # from the centre
    return cxcywh_from_xyxy(torch.cat([start[..., :2] - away[..., :2], start[..., :2] + away[..., 2:]], -1))


def steps_to(start: Tensor, boxes: Tensor) -> Tensor:
    """phi (..., 4): how far each edge of the first box has to go outwards, in sides of that box; both cxcywh."""
    low, high = xyxy_from_cxcywh(boxes).split(2, -1)
    away = torch.cat([start[..., :2] - low, high - start[..., :2]], -1)
    return away / torch.cat([start[..., 2:]] * 2, -1) - 0.5


def fine_grained_loss(edges: Tensor, phi: Tensor, W: Tensor) -> Tensor:
    """FGL of logits (..., N + 1) for steps phi (...) -> (...). What lies beyond the last step is cut."""
    phi = phi.clamp(W[0], W[-1])
    right = torch.searchsorted(W, phi.contiguous()).clamp(1, len(W) - 1)
    part, p = (phi - W[right - 1]) / (W[right] - W[right - 1]), edges.log_softmax(-1)
    of_left, of_right = (p.gather(-1, each[..., None])[..., 0] for each in (right - 1, right))
    return -((1 - part) * of_left + part * of_right)


if __name__ == "__main__":
    start, truth = torch.tensor([0.45, 0.5, 0.5, 0.4]), torch.tensor([0.45, 0.5, 0.4, 0.4])
    phi, rows = steps_to(start, truth), list[dict[str, object]]()
    for sure in (0, 10, 100):
        edges = -sure * (W - phi[:, None]).abs()
        of_left, box = fine_grained_loss(edges[0], phi[0], W), moved(start, edges, W)
        at, fits = (edges.softmax(-1) @ W)[0].item(), generalized_iou(box, truth).item()
        rows.append({"step, left edge": at, "wanted": phi[0].item(), "FGL": of_left.item(), "GIoU of the box": fits})
    run.show("edges", rows)

# %% [markdown]
# ## A decoder that looks again where the box is
# The query looks at the map in a few points around its box (deformable attention, arXiv:2010.04159): four heads, one towards
# each side, say where, and how much each point counts. The first layer gives the first box, the next ones look at what came out.


# %%
class Layer(nn.Module):
    """A query (B, D) looks at a map (B, D, h, w) around its box (B, 4), then thinks -> (B, D)."""

    def __init__(self, width: int, hidden: int, points: int = 4) -> None:
        super().__init__()
        self.where, self.much = nn.Linear(width, 8 * points), nn.Linear(width, 4 * points)
        self.place, self.think = nn.Linear(4, width), MLP(width, [hidden, width], inplace=None)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        out = torch.tensor([[-1.0, 0.0], [0.0, -1.0], [1.0, 0.0], [0.0, 1.0]])  # left, up, right, down
        nn.init.zeros_(self.where.weight)
        self.where.bias = nn.Parameter((out[:, None] * torch.linspace(0.25, 1.25, points)[:, None]).flatten())

    def forward(self, query: Tensor, features: Tensor, box: Tensor) -> Tensor:
        placed, place = query + self.place(box), box[:, None, None]
        much = self.much(placed).unflatten(1, (4, -1)).softmax(-1).flatten(0, 1)[:, None]  # (4 B, 1, P)
        at = place[..., :2] + self.where(placed).unflatten(1, (4, -1, 2)).float() * place[..., 2:] / 2  # (B, 4, P, 2)
        heads = features.unflatten(1, (4, -1)).flatten(0, 1).float()  # (4 B, D / 4, h, w)
        seen = nn.functional.grid_sample(heads, 2 * at.flatten(0, 1)[:, None] - 1, align_corners=False)[:, :, 0]
        query = self.norms[0](query + (seen * much).sum(-1).unflatten(0, (-1, 4)).flatten(1))
        return self.norms[1](query + self.think(query))


class Said(NamedTuple):
    """Of each layer score (B, L) and edges (B, L, 4, N + 1) as logits, boxes cxcywh (B, L, 4); and the first box (B, 4)."""

    score: Tensor
    edges: Tensor
    boxes: Tensor
    start: Tensor


class DFINE(nn.Module):
    """Images (B, 3, S, S) -> what each layer says of the one shape."""

    def __init__(self, preset: Preset, W: Tensor | None = None) -> None:
        super().__init__()
        width = preset.width
        stages = [(3, width // 2, 4, 4), (width // 2, width, 3, 2), (width, width, 3, 1)]
        self.backbone = nn.Sequential(*(Conv2dNormActivation(a, b, k, s, padding=k % 2) for a, b, k, s in stages))
        self.query, self.anchor = nn.Parameter(torch.randn(width)), nn.Buffer(torch.full((4,), 0.5))
        self.layers = nn.ModuleList(Layer(width, preset.hidden) for _ in range(preset.layers))
        self.first, self.score = MLP(width, [width, width, 4], inplace=None), nn.Linear(width, 1)
        self.heads = nn.ModuleList(self.head(width) for _ in range(preset.layers))
        self.W = nn.Buffer(weighting() if W is None else W)
        for head in list[Any](self.heads):
            nn.init.zeros_(head[-2].weight)  # untrained layers hardly move the first box

    def head(self, width: int) -> MLP:
        """What a layer adds, from its query."""
        return MLP(width, [width, width, 4 * (N + 1)], inplace=None)

    def refined(self, start: Tensor, edges: Tensor) -> Tensor:
        """The box, from the first one and from all that the layers have added."""
        return moved(start, edges, self.W)

    def forward(self, images: Tensor) -> Said:
        features = self.backbone(images)  # (B, D, h, w)
        query, box, said = self.query + features.mean((2, 3)), self.anchor.expand(len(images), -1), list[Any]()
        start, edges = box, torch.zeros((), device=images.device)
        for layer, head in zip(self.layers, self.heads, strict=True):
            query = layer(query, features, box)
            if not said:
                start = (torch.logit(self.anchor) + self.first(query).float()).sigmoid()
            edges = edges + head(query).float().unflatten(1, (4, -1))
            box = self.refined(start.detach(), edges)
            said.append((self.score(query)[:, 0].float(), edges, box))
            box = box.detach()
        return Said(*[torch.stack(each, 1) for each in zip(*said, strict=True)] + [start])

    def edge_loss(self, said: Said, boxes: Tensor) -> Tensor:
        """FGL, summed over the four edges, (B, L)."""
        phi = steps_to(said.start.detach(), boxes)[:, None].expand(said.edges.shape[:-1])
        return fine_grained_loss(said.edges, phi, self.W).sum(-1)


if __name__ == "__main__":
    preset = PRESETS[run.preset]
    seed_everything(run.seeds[0])
    said = DFINE(preset)(torch.rand(2, 3, SIDE, SIDE))
    run.show("shapes", [{"of two scenes": a, "shape": str(tuple(b.shape))} for a, b in said._asdict().items()])

# %% [markdown]
# ## Train it
# Each scene holds one shape with soft edges on a photograph. All boxes learn by L1 and GIoU, the edges by the FGL, weighted by
# how well the box fits, and the score learns how well it fits.


# %%
def loss_of(model: Any, images: Tensor, truth: Tensor) -> Tensor:
    """Mean over scenes, summed over layers."""
    said = model(images)
    boxes, truth = torch.cat([said.start[:, None], said.boxes], 1), truth[:, None]
    giou = generalized_iou(boxes, truth)  # (B, L + 1)
    good = giou[:, 1:].detach().clamp(min=0)
    of_score = nn.functional.binary_cross_entropy_with_logits(said.score, good, reduction="none")
    of_boxes = L1 * (boxes - truth).abs().sum(-1) + GIOU * (1 - giou)
    return (of_boxes.sum(1) + (of_score + FGL * good * model.edge_loss(said, truth[:, 0])).sum(1)).mean()


@cache
def train(run: Run, seed: int, rate: float, make: Any) -> Any:
    """A network for this seed."""
    preset = PRESETS[run.preset]
    seed_everything(seed)
    model, data = make(preset), [each.to(run.device) for each in soft("train", preset.scenes[0], seed)]
    batches = minibatches(data, preset.batch, preset.steps, seed)
    fit(model, batches, loss_of, steps=preset.steps, learning_rate=rate * preset.rate, device=run.device)
    return model


@torch.inference_mode()
def look_at(model: nn.Module, images: Tensor) -> Said:
    """What the network says of scenes, on the CPU."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)) for part in images.split(500)]
    return Said(*(torch.cat(each).cpu() for each in zip(*parts, strict=True)))


def precision(boxes: Tensor, score: Tensor, test: Soft) -> dict[str, float]:
    """COCO's AP in % of one box for each scene, cxcywh (n, 4), with its score (n,): `ap`, `ap50`, `ap75` and others."""
    objects = [[{"boxes": box[None] * SIDE, "labels": torch.zeros(1), "scores": sure[None].sigmoid()}
                for box, sure in zip(xyxy_from_cxcywh(each), score, strict=True)] for each in (boxes, test.boxes)]  # fmt: skip
    return {name: 100 * ap for name, ap in metrics.average_precision(objects[0], objects[1]).items()}


if __name__ == "__main__":
    model, test = train(run, run.seeds[0], RATE, DFINE), soft("test", preset.scenes[1], run.seeds[0])
    said, rows = look_at(model, test.images), []
    for layer, boxes in enumerate((said.start, *said.boxes.unbind(1))):
        ap = precision(boxes, said.score[:, -1], test)
        rows.append({"layers": layer, "AP50 (%)": ap["ap50"], "AP75 (%)": ap["ap75"], "AP (%)": ap["ap"]})
    run.show("trained", rows)

# %% [markdown]
# ## Edges, layer by layer
# Each bright line is a step that an edge may take, as bright as it is likely. They gather where the edge is. Then the same for
# one edge: the further from the first box, the wider apart are the steps.


# %%
def draw_edges(style: Style, images: Tensor, said: Said, truth: Tensor, W: Tensor) -> Figure:
    figure, axes = panels(len(images), said.boxes.shape[1], width=5.4, height=1.85 * len(images))
    outwards = torch.tensor([-1.0, -1, 1, 1])[:, None] * (0.5 + W)  # (4, N + 1)
    for index, ax in enumerate(axes.flat):
        row, layer = divmod(index, axes.shape[1])
        centre, sides = said.start[row, :2] * SIDE - 0.5, said.start[row, 2:].repeat(2) * SIDE
        at = centre.repeat(2)[:, None] + outwards * sides[:, None]  # (4, N + 1) px
        corners, p = xyxy_from_cxcywh(said.boxes[row, layer]) * SIDE - 0.5, said.edges[row, layer].softmax(-1)
        show_image(ax, images[row].mean(0), f"layer {layer + 1}" if row == 0 else None)
        for edge, places in enumerate(at.tolist()):
            lines = [[(x, end)[:: 1 - edge % 2 * 2] for end in corners[1 - edge % 2 :: 2].tolist()] for x in places]
            colours = [(1.0, 0.75, 0.2, 0.9 * strength) for strength in (p[edge] / p[edge].max()).tolist()]
            ax.add_collection(LineCollection(lines, colors=colours, linewidths=0.8))
        draw_boxes(ax, xyxy_from_cxcywh(truth[row, None]) * SIDE, colour="white", linestyle=":", linewidth=1.4)
        (x, y), reach = centre.tolist(), 0.9 * float(sides.max())
        ax.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach))
    return figure


def draw_steps(style: Style, said: Said, truth: Tensor, W: Tensor) -> Figure:
    p, phi = said.edges[0, :, 0].softmax(-1), steps_to(said.start[0], truth[0])[0]  # the left edge
    figure, axes = panels(len(p), 1, width=5.4, height=3.6, sharex=True)
    for layer, ax in enumerate(axes[:, 0]):
        ax.vlines(W, 0, p[layer], color=style.cycle[0], linewidth=2)
        ax.axvline(float(p[layer] @ W), color=style.cycle[1], label="mean")
        ax.axvline(float(phi), color=style.ink, linestyle=":", label="truth")
        ax.set(ylabel=f"layer {layer + 1}", yticks=[], ylim=(0, None))
    axes[-1, 0].set(xlabel="step of the left edge outwards, in widths of the first box", xlim=(-0.6, 0.6))
    axes[0, 0].legend(loc="upper left")
    return figure


if __name__ == "__main__":
    first = Said(*(each[:2] for each in said))
    run.figure("edges", partial(draw_edges, images=test.images[:2], said=first, truth=test.boxes[:2], W=W),
               caption="Where each layer thinks the edges are, on two test scenes. Bright: likely; dotted: the true box.",
               alt="Two scenes, each three times: bright lines gather around the outline of a soft shape.")  # fmt: skip
    run.figure("steps", partial(draw_steps, said=first, truth=test.boxes[:2], W=W),
               caption="How likely each layer finds each step of the left edge of the first scene. The box takes the mean.",
               alt="Rows of vertical lines, denser in the middle, with the mean and the true step marked.")  # fmt: skip

# %% [markdown]
# ## Your own image
# The smallest published D-FINE, from the hub of transformers, on a photograph of scikit-image or on yours.


# %%
def published(image: Any) -> weights.Boxes:
    from transformers import AutoImageProcessor, DFineForObjectDetection

    processor = AutoImageProcessor.from_pretrained("ustc-community/dfine-nano-coco")
    network = DFineForObjectDetection.from_pretrained("ustc-community/dfine-nano-coco").eval()
    raw = network(**processor(images=image, return_tensors="pt"))
    (found,) = processor.post_process_object_detection(raw, threshold=0.5, target_sizes=[image.size[::-1]])
    return found["boxes"], [network.config.id2label[int(label)] for label in found["labels"]]


if __name__ == "__main__":
    weights.show_boxes(run, "ustc-community/dfine-nano-coco", published, megabytes=16, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - There is one shape in a scene and one query, so nothing is matched, named or selected: only how a box is found is left.
#   Queries that look at each other, and one-to-one matching, are in the example of DETR.
# - A few convolutions of stride 8, trained from scratch, stand for HGNetv2 and the encoder. First boxes are rough, since no
#   encoder selects queries, so layers have further to go.
# - The layers do not teach each other (GO-LSD), and no gate weighs what a layer has seen. The score learns the IoU by plain
#   cross-entropy. Weights of the losses are those of the paper.
# - What holds here, after seconds on scenes of 48 px, explains a mechanism; it says nothing about COCO.
