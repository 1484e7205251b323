# %% [markdown]
# # Grounding DINO: can a detector find what no box of its training showed, by the words of its name?
#
# A detector has a list of classes; Grounding DINO has a text. Picture and words look at each other, and each box is scored by
# its similarity to each name. Here it is, small enough to train in seconds, on coloured shapes such as "red ring". Five of the
# 25 names are left out of the training. The experiments ask whether their words are enough to find them, and what comes out
# when a name is asked for that is not there.
#
# | symbol (arXiv:2303.05499) | here | meaning |
# |---|---|---|
# | $X_T$ | `text` | tokens of the text, two words for each of P names, (B, 2 P, D) |
# | $X_I$ | `image` | tokens of the picture, (B, h w, D) |
# | $N_q$ | `queries` | places of the picture that become queries |
# | $\mathbf{I}_{N_q}$ | `best` | which places they are, (B, N) |
# | | `Found` | similarity to each name as logits, (B, N, P), and boxes (B, N, 4) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import GIOU, L1, hungarian
from lab import metrics, weights
from lab.boxes import generalized_iou, grid_points, sine_encoding, xyxy_from_cxcywh
from lab.data.named import KNOWN, LEFT_OUT, NAMES, SIDE, SPELLING, STEP, WORDS, Named, named
from lab.figures import Figure, Style, draw_boxes, panels, show_image
from lab.run import Run
from lab.training import fit, minibatches, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation, sigmoid_focal_loss

RATE = 8e-3  # peak learning rate, see claims/grounding-dino.searches.json
CONTRAST = 2.0  # weight of the similarity beside the box losses
PRIOR = 0.3  # side of the box that an untrained head predicts, relative to the picture
SYNCHRONISATIONS_PER_STEP = 4  # costs go to the Hungarian algorithm and back, for the image tokens and for the queries


class Preset(NamedTuple):
    """Steps and scenes in a step, D, width of the feed-forward networks, layers, queries, names in a text, numbers of
    training and test scenes, factor on the rate."""

    steps: int = 300
    batch: int = 16
    width: int = 48
    hidden: int = 96
    layers: int = 1
    queries: int = 8
    names: int = 8
    scenes: tuple[int, int] = (2000, 200)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(3, 4, 24, 24, scenes=(16, 24)),
    "quick": Preset(),
    "full": Preset(8000, 64, 192, 768, 3, 24, 12, (20_000, 1000), 0.25),
}

# %% [markdown]
# ## A class is a name, and a name is words
# Names stand one after the other in one text. The words of a name see each other, so that *red* of "red ring" is not that of
# "red disc"; a mask of the attention keeps the names apart (sub-sentence text, Section 3.4).


# %%
def apart(tokens: int, device: torch.device) -> Tensor:
    """The mask (T, T) of a text of two-word names: true where a token must not look, which is at other names."""
    name = torch.arange(tokens, device=device) // 2
    return name[:, None] != name


if __name__ == "__main__":
    run = Run.start("grounding-dino", pretrained=True)
    preset = PRESETS[run.preset]
    spelled = [WORDS[word] for name in (4, 5) for word in SPELLING[name]]
    sees = (~apart(len(spelled), torch.device("cpu"))).tolist()
    rows = {word: [other for other, there in zip(spelled, row, strict=True) if there]
            for word, row in zip(spelled, sees, strict=True)}  # fmt: skip
    rows["left out of training"] = [NAMES[each] for each in LEFT_OUT]
    run.show("names", [{"token": word, "sees": ", ".join(others)} for word, others in rows.items()])

# %% [markdown]
# ## Picture and text look at each other
# In each layer of the feature enhancer the picture attends to itself, each name to its words, and then each of the two to the
# other. So a place of the picture knows what is asked for, and a word knows what there is to see.


# %%
class Cross(nn.Module):
    """x (B, n, D) looks at other tokens (B, m, D) -> (B, n, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attend, self.norm = nn.MultiheadAttention(width, 4, batch_first=True), nn.LayerNorm(width)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.norm(x + self.attend(x, other, other, need_weights=False)[0])


class Enhancer(nn.Module):
    """One layer: image (B, h w, D) and text (B, T, D) -> both, after each has looked at itself and at the other."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        encode = partial(nn.TransformerEncoderLayer, preset.width, 4, preset.hidden, 0.0, batch_first=True)
        self.of_image, self.of_text = encode(), encode()
        self.to_text, self.to_image = Cross(preset.width), Cross(preset.width)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image, text = self.of_image(image), self.of_text(text, src_mask=apart(text.shape[1], text.device))
        return self.to_text(image, text), self.to_image(text, image)


if __name__ == "__main__":
    image, text = Enhancer(preset)(torch.rand(2, 36, preset.width), torch.rand(2, 10, preset.width))
    run.show("enhanced", [{"tokens of": "two pictures", "shape": str(tuple(image.shape))},
                          {"tokens of": "two texts of five names", "shape": str(tuple(text.shape))}])  # fmt: skip

# %% [markdown]
# ## The words pick the queries, and score them
# Of all places of the picture, those that fit some word best become queries (Eq. 1). In each layer of the decoder they look at
# the text, at each other and at the picture. A box has no class scores, only its similarity to the words of each name:
# $$\mathbf{I}_{N_q} = \mathrm{Top}_{N_q}\big(\max{}^{(-1)}(X_I X_T^{\top})\big)$$


# %%
class Found(NamedTuple):
    """logits (B, N, P) of the similarity to each name; boxes (B, N, 4) cxcywh relative to the picture."""

    logits: Tensor
    boxes: Tensor


class GroundingDINO(nn.Module):
    """Images (B, 3, S, S) and the words of P names (B, P, 2) -> what image tokens say, then what queries say after each layer."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width, self.queries = preset.width, preset.queries
        stages = [(3, width // 3, 2), (width // 3, width * 2 // 3, 2), (width * 2 // 3, width, 2), (width, width, 1)]
        self.backbone = nn.Sequential(*(Conv2dNormActivation(a, b, stride=stride) for a, b, stride in stages))
        self.words, self.order = nn.Embedding(len(WORDS), width), nn.Parameter(torch.randn(2, width))
        self.enhancer = nn.ModuleList(Enhancer(preset) for _ in range(preset.layers))
        decode = partial(nn.TransformerDecoderLayer, width, 4, preset.hidden, 0.0, batch_first=True)
        self.look = nn.ModuleList(Cross(width) for _ in range(preset.layers))
        self.decoder = nn.ModuleList(decode() for _ in range(preset.layers))
        self.points = nn.Buffer(grid_points(SIDE // 8))  # (h w, 2)
        self.place = nn.Buffer(sine_encoding(self.points, width))  # (h w, D)
        self.say, self.box = nn.Linear(width, width), MLP(width, [width, width, 4], inplace=None)
        self.bias = nn.Parameter(torch.tensor(-3.0))  # a name fits few boxes

    def read(self, x: Tensor, text: Tensor, points: Tensor) -> Found:
        """What tokens x (B, n, D) around points (B, n, 2) say: the mean similarity to the words of each name, and a box."""
        similarity = self.say(x) @ text.mT / x.shape[-1] ** 0.5 + self.bias  # (B, n, T)
        start = torch.logit(torch.cat([points, torch.full_like(points, PRIOR)], -1))
        return Found(similarity.unflatten(-1, (-1, 2)).mean(-1).float(), (start + self.box(x).float()).sigmoid())

    def forward(self, images: Tensor, spelling: Tensor) -> list[Found]:
        text = (self.words(spelling) + self.order).flatten(1, 2)  # (B, P, 2, D) -> (B, T, D)
        image = self.backbone(images).flatten(2).mT + self.place  # (B, D, h, w) -> (B, h w, D)
        for layer in self.enhancer:
            image, text = layer(image, text)
        points = self.points.expand(len(images), -1, -1)
        said = [self.read(image, text, points)]
        best = said[0].logits.amax(-1).topk(self.queries).indices[..., None]  # (B, N, 1)
        queries, points = (each.gather(1, best.expand(-1, -1, each.shape[-1])) for each in (image, points))
        for look, layer in zip(self.look, self.decoder, strict=True):
            queries = layer(look(queries, text), image)
            said.append(self.read(queries, text, points))
        return said


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    scenes = named("test", 2, run.seeds[0])
    for_places, *_, for_queries = GroundingDINO(preset)(scenes.images, SPELLING.expand(2, -1, -1))
    run.show("shapes", [{"of two pictures and 25 names": name, "similarity": str(tuple(each.logits.shape)),
                         "boxes": str(tuple(each.boxes.shape))}
                        for name, each in (("all places", for_places), ("queries", for_queries))])  # fmt: skip

# %% [markdown]
# ## A contrast in the place of a classifier
# Boxes are matched one to one with the things of the scene, as in DETR, by similarity to the right name and by distance. The
# matched box should be similar to that name and to no other, all other boxes to none: a focal loss over boxes and names. The
# text of a training scene holds the names of what is there, and others. Below, what a right box pays.


# %%
@torch.no_grad()
def one_to_one(found: Found, boxes: Tensor, wanted: Tensor) -> Tensor:
    """owner (B, N): the thing that each box is matched with, -1 for none; boxes (B, M, 4), wanted (B, M, P) as one-hot."""
    ours, theirs = found.boxes[:, :, None], boxes[:, None]  # (B, N, 1, 4), (B, 1, M, 4)
    distance = L1 * (ours - theirs).abs().sum(-1) - GIOU * generalized_iou(ours, theirs)  # (B, N, M)
    cost = distance - CONTRAST * found.logits.sigmoid() @ wanted.mT
    return hungarian(cost.masked_fill(~wanted.any(-1)[:, None], torch.inf))


def grounding_loss(found: Found, boxes: Tensor, wanted: Tensor) -> Tensor:
    """Contrast and box losses for each thing: boxes (B, M, 4), wanted (B, M, P), zero where a thing is padded."""
    owner = one_to_one(found, boxes, wanted)
    matched, index = (owner >= 0)[..., None], owner.clamp(min=0)[..., None]  # (B, N, 1)
    target = wanted.gather(1, index.expand(-1, -1, wanted.shape[-1])) * matched  # (B, N, P)
    box = boxes.gather(1, index.expand(-1, -1, 4))
    contrast = sigmoid_focal_loss(found.logits, target, reduction="sum")
    distance = L1 * (found.boxes - box).abs().sum(-1) + GIOU * (1 - generalized_iou(found.boxes, box))
    return (CONTRAST * contrast + (distance * matched[..., 0]).sum()) / matched.sum().clamp(min=1)


if __name__ == "__main__":
    box, wanted = torch.tensor([[[0.5, 0.5, 0.3, 0.3]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
    said = {"by its name": [4.0, -4, -4], "by another one": [-4.0, 4, -4], "by none": [-4.0, -4, -4]}
    paid = {how: grounding_loss(Found(torch.tensor([[logits]]), box), box, wanted) for how, logits in said.items()}
    run.show("loss", [{"a thing is called": how, "loss": loss.item()} for how, loss in paid.items()])

# %% [markdown]
# ## Train it
# Neither the pictures nor the texts of training hold the five names that are left out. In the test all 25 names are asked for.


# %%
def prompts(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each scene, labels (B, M), `count` known names (B, P): those of its things, and others at random."""
    chance = torch.rand(len(labels), len(NAMES) + 1, generator=generator, device=labels.device)
    chance[:, ::STEP] = -1  # the names that are left out
    return chance.scatter(1, labels, 2.0)[:, :-1].topk(count).indices


def loss_of(model: nn.Module, images: Tensor, boxes: Tensor, labels: Tensor, *, spelling: Tensor, names: int,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """Image tokens and the queries of each layer pay alike; `spelling` (K, 2) holds the words of each name."""
    asked = prompts(labels, names, generator)
    wanted = (labels[:, :, None] == asked[:, None]).float()  # (B, M, P)
    return torch.stack([grounding_loss(each, boxes, wanted) for each in model(images, spelling[asked])]).sum()


@cache
def train(run: Run, seed: int, rate: float, spelling: Tensor) -> GroundingDINO:
    """A network for this seed that knows names by these words."""
    preset, device = PRESETS[run.preset], run.device
    seed_everything(seed)
    model, generator = GroundingDINO(preset), torch.Generator(device).manual_seed(seed)
    data = [each.to(device) for each in named("train", preset.scenes[0], seed)[:3]]
    loss = partial(loss_of, spelling=spelling.to(device), names=preset.names, generator=generator)
    batches = minibatches(data, preset.batch, preset.steps, seed)
    fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)
    return model


@torch.inference_mode()
def ask(model: nn.Module, images: Tensor, spelling: Tensor, layer: int = -1) -> Found:
    """What is found of the names (P, 2), the same for all pictures, or (n, P, 2), on the CPU."""
    device = next(model.parameters()).device
    parts = zip(images.split(100), spelling.expand(len(images), -1, -1).split(100), strict=True)
    found = [model(image.to(device), words.to(device))[layer] for image, words in parts]
    return Found(*(torch.cat([each.cpu() for each in part]) for part in zip(*found, strict=True)))


def ap50(found: Found, scenes: Named, classes: tuple[int, ...]) -> float:
    """AP50 (%) over some of the classes, from what was found of all names: each box counts for the name that it fits best."""

    def objects(boxes: Tensor, labels: Tensor, scores: Tensor) -> list[dict[str, Tensor]]:
        kept = [torch.isin(each, torch.tensor(classes)) for each in labels]
        rows = zip(xyxy_from_cxcywh(boxes) * SIDE, labels, scores, kept, strict=True)
        return [{"boxes": box[keep], "labels": label[keep], "scores": score[keep]} for box, label, score, keep in rows]

    scores, labels = found.logits.sigmoid().max(-1)  # (n, N)
    truth = objects(scenes.boxes, scenes.labels, torch.ones_like(scenes.boxes[..., 0]))
    return 100 * metrics.average_precision(objects(found.boxes, labels, scores), truth, sizes=(12.0, 17.0))["ap50"]


if __name__ == "__main__":
    model = train(run, run.seeds[0], RATE, SPELLING)
    test = named("test", preset.scenes[1], run.seeds[0], range(len(NAMES)))
    found = ask(model, test.images, SPELLING)
    run.show("trained", [{"names": "20, in training", "AP50 (%)": ap50(found, test, KNOWN)},
                         {"names": "5, left out", "AP50 (%)": ap50(found, test, LEFT_OUT)}])  # fmt: skip

# %% [markdown]
# ## What it finds by name
# Scenes of things that no training showed, asked for the five names that no training said. Then one of the scenes, and how
# similar each of its places is to four of the names.


# %%
def draw_found(style: Style, scenes: Named, found: Found, sure: float = 0.25) -> Figure:
    figure, axes = panels(2, 2, width=5.4, height=5.5)
    for ax, image, logits, boxes in zip(axes.flat, scenes.images, *found, strict=False):
        scores, best = logits.sigmoid().max(0)  # of each name the box that fits it best, (P,)
        names = [NAMES[name] for name, score in zip(LEFT_OUT, scores, strict=True) if score > sure]
        show_image(ax, image)
        draw_boxes(ax, xyxy_from_cxcywh(boxes[best[scores > sure]]) * SIDE, names)
    return figure


def draw_similarity(style: Style, scenes: Named, places: Found) -> Figure:
    figure, axes = panels(1, 5, width=5.4, height=1.6)
    similar = places.logits[0].sigmoid().unflatten(0, (SIDE // 8, -1))  # (h, w, P)
    show_image(axes[0, 0], scenes.images[0], "scene\n")
    for ax, name in zip(axes[0, 1:], range(1, 5), strict=True):
        title = NAMES[LEFT_OUT[name]].replace(" ", "\n")
        show_image(ax, similar[..., name], title, cmap=style.sequential, vmax=similar.max().item())
    return figure


if __name__ == "__main__":
    unseen, asked = named("test", 4, run.seeds[0], LEFT_OUT), SPELLING[list(LEFT_OUT)]
    run.figure("found", partial(draw_found, scenes=unseen, found=ask(model, unseen.images, asked)),
               caption="The first test scenes of things that no training showed, asked for the five names that no training said. "
               "Shown is the box that is most similar to each name, where it is sure.",
               alt="Four scenes of coloured shapes on dark photographs, with a named box around each shape.")  # fmt: skip
    run.figure("similarity", partial(draw_similarity, scenes=unseen, places=ask(model, unseen.images, asked, 0)),
               caption="How similar the places of the first scene are to four of the names, bright where they are.",
               alt="A scene of shapes, and four coarse maps, each bright at the place of the shape with that name.")  # fmt: skip

# %% [markdown]
# ## Your own image
# The published Grounding DINO-T, from the hub of transformers, asked for three things in a photograph, or in yours.


# %%
def published(image: Any, names: str = "a motorcycle. a wheel. a cat.") -> weights.Boxes:
    from transformers import AutoProcessor, GroundingDinoForObjectDetection

    processor = AutoProcessor.from_pretrained("IDEA-Research/grounding-dino-tiny")
    network = GroundingDinoForObjectDetection.from_pretrained("IDEA-Research/grounding-dino-tiny").eval()
    inputs = processor(images=image, text=names, return_tensors="pt")
    sizes = [(image.height, image.width)]
    (said,) = processor.post_process_grounded_object_detection(network(**inputs), inputs.input_ids, target_sizes=sizes)
    return said["boxes"], said["text_labels"]


if __name__ == "__main__":
    weights.show_boxes(run, "IDEA-Research/grounding-dino-tiny", published, megabytes=690, otherwise="motorcycle")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A few convolutions of stride 8 and ten learned words stand for the Swin Transformer and for BERT. BERT knows words from
#   texts; here a word is known from the four names that hold it, so only new combinations of known words can be found.
# - One layer of enhancer and decoder instead of six, full attention instead of deformable, one scale, no denoising. Places
#   are added to the image tokens once, at the start.
# - Boxes stay around the point of their image token; they are not refined layer by layer. A name scores with the mean over
#   its words, whose targets are the same; in the paper each token has a score, and the best of them counts.
