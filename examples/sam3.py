# %% [markdown]
# # SAM 3: can a model say that what it is asked for is not there?
#
# SAM 3 is given a phrase and outlines everything that the phrase names. Each of its queries looks at one object; whether there
# is anything to find is a question about the whole picture. So one more token, the presence token, answers that alone, and its
# answer multiplies those of all queries. Here it is, small enough to train in seconds, on coloured shapes such as "red ring".
# The experiments ask what the token is worth, and what it is worth to train on phrases that are nearly right.
#
# | symbol (arXiv:2511.16719) | here | meaning |
# |---|---|---|
# | $P$ | `words` | what is asked: P phrases about each picture, two words each, (B, P, 2, D) |
# | $I$ | `tokens`, `pixels` | what the image tower sees, (B, h w, D) and (B, D, S / 2, S / 2) |
# | $\mathrm{query}_i$ | `queries` | N object queries, and the presence token as one more, (B P, N + 1, D) |
# | | `Found` | logits: presence (B, P), match of each query (B, P, N), its mask (B, P, N, S / 2, S / 2), match of tokens |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from detr import hungarian
from lab import boxes, data, weights
from lab.data.phrases import FAR, NEAR, PHRASES, SAID, THERE, chosen, draw, scenes
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.towers import GRID, Seen, Towers, named_pixels, see, trained_towers
from lab.training import fit, minibatches, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP

RATE, TOWERS = 4e-3, 1e-2  # peak learning rates: see claims/sam3.searches.json; of the towers, the same for all arms
MASK, DICE, DENSE = 5.0, 5.0, 10.0  # weights of the losses beside those of match and presence
PUBLISHED = "facebook/sam3"
SYNCHRONISATIONS_PER_STEP = 2  # costs go to the Hungarian algorithm on the CPU, the assignment comes back


class Preset(NamedTuple):
    """Steps and scenes in a step, D, width of the feed-forward networks, layers, queries along a side, numbers of training and
    test scenes, factor on the rates."""

    steps: int = 300
    batch: int = 8
    width: int = 32
    hidden: int = 64
    layers: int = 1
    grid: int = 3
    scenes: tuple[int, int] = (1000, 300)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(3, 4, 16, 16, scenes=(16, 24)),
    "quick": Preset(),
    "full": Preset(8000, 64, 192, 768, 6, 5, (10_000, 1000), 0.25),
}

# %% [markdown]
# ## A concept is a phrase, and it may name several things
# "red ring" names one kind of thing, "red" names everything red. Of each scene, a phrase is *there*, or it is *near* (it shares
# a word with a thing, but names none), or it is *far*. The near ones are the hard negatives.


# %%
HARD, EASY = (THERE, THERE, FAR, NEAR), (THERE, THERE, FAR, FAR)  # what a step asks about each scene


def draw_answers(style: Style, images: Tensor, inside: Tensor, titles: list[str]) -> Figure:
    """Pictures (n, 3, S, S), dimmed but for what each of three phrases has as its answer (n, 3, S, S)."""
    figure, axes = panels(len(images), 3, width=5.4, height=2.15 * len(images))
    for place, (ax, title) in enumerate(zip(axes.flat, titles, strict=True)):
        scene, phrase = divmod(place, 3)
        show_image(ax, images[scene] * (0.3 + 0.7 * inside[scene, phrase]), title)
    return figure


if __name__ == "__main__":
    run = Run.start("sam3", pretrained=True)
    preset = PRESETS[run.preset]
    test = scenes("test", preset.scenes[1], run.seeds[0])
    which, phrases = chosen(test)
    named = test.names[which].gather(1, phrases[..., None].expand(-1, -1, test.names.shape[-1]))  # (n, 3, M)
    answer = nn.functional.interpolate((named[..., None, None] * test.masks[which, None]).amax(2), scale_factor=2.0)
    titles = [f"{SAID[phrase]}\nnames {things or 'nothing'}"
              for phrase, things in zip(phrases.flatten(), named.sum(-1).flatten(), strict=True)]  # fmt: skip
    run.figure("asked", partial(draw_answers, images=test.images[which[:2]], inside=answer[:2], titles=titles[:6]),
               caption="What is asked: three phrases about each of two scenes. The answer to a phrase is all that it names, here "
               "bright: one thing, several, or nothing, though there is a thing that shares a word with it.",
               alt="Scenes of coloured shapes in three columns, each dimmed but for what the phrase above it names.")  # fmt: skip

# %% [markdown]
# ## Two towers that were trained together
# SAM 3 starts from a pair of towers that have learned from pictures with texts. So do we: `lab.towers` trains an image tower,
# which gives each pixel a vector, and a text tower, which gives each word one, to be similar where the word names the pixel.
# Then they are frozen, and serve everything below.


# %%
@cache
def towers_of(run: Run, seed: int) -> Towers:
    """Frozen towers for this seed."""
    preset, shown = PRESETS[run.preset], scenes("train", PRESETS[run.preset].scenes[0], seed)
    return trained_towers(shown.images, named_pixels(shown.labels, shown.masks), width=preset.width, batch=preset.batch,
                          steps=preset.steps, rate=TOWERS * preset.rate, seed=seed, device=run.device)  # fmt: skip


@cache
def seen_of(run: Run, seed: int, split: data.Split) -> Seen:
    """What they see of the scenes of a split."""
    return see(towers_of(run, seed), scenes(split, PRESETS[run.preset].scenes[split != "train"], seed).images)


if __name__ == "__main__":
    towers, seen = towers_of(run, run.seeds[0]), seen_of(run, run.seeds[0], "test")
    similar = towers.similarity(seen.pixels).sigmoid().cpu()
    called = named_pixels(test.labels, test.masks) > 0.5
    run.show("similarity", [{"a word and": what, "mean similarity": similar[where].mean().item()}
                            for what, where in (("a pixel that it names", called), ("any other", ~called))])  # fmt: skip

# %% [markdown]
# ## Picture, phrase, queries, and one token more
# Each place of the picture is compared with the words. Queries start from the places around them, the presence token from the
# phrase, and all look at the picture and at each other. A query is a match if the concept is there at all:
# $$p(\mathrm{query}_i \text{ matches}) =
# p(\mathrm{query}_i \text{ matches} \mid \text{concept present}) \cdot p(\text{concept present})$$


# %%
class Found(NamedTuple):
    """Logits: presence (B, P), match (B, P, N), masks (B, P, N, S / 2, S / 2), match of the places of the picture (B, P, h w)."""

    presence: Tensor
    match: Tensor
    masks: Tensor
    places: Tensor

    def scores(self, token: bool = True) -> Tensor:
        """p(query matches), (B, P, N); without the token a query speaks for itself."""
        return self.match.sigmoid() * self.presence.sigmoid()[..., None] if token else self.match.sigmoid()


class SAM3(nn.Module):
    """What is seen of B pictures, and the words of P phrases about each (B, P, 2, D) -> what is found."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width, self.grid = preset.width, preset.grid
        self.place = nn.Buffer(boxes.sine_encoding(boxes.grid_points(GRID), width))  # (h w, D)
        self.norm, self.fuse = nn.LayerNorm(width), MLP(3 * width, [preset.hidden, width], inplace=None)
        self.start = nn.Parameter(torch.randn(preset.grid**2 + 1, width) / 10)  # (N + 1, D): queries, presence token
        layer = partial(nn.TransformerDecoderLayer, width, 2, preset.hidden, 0.0, batch_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(preset.layers))
        self.say, self.bias = nn.Linear(width, width), nn.Parameter(torch.tensor(-2.0))
        self.present, self.mask = MLP(width, [width, 1], inplace=None), MLP(width, [width, width], inplace=None)
        nn.init.eye_(self.say.weight)  # the towers share a space

    def forward(self, tokens: Tensor, pixels: Tensor, words: Tensor) -> Found:
        B, P, *_ = words.shape
        (first, second), phrase = words.flatten(0, 1).split(1, 1), words.flatten(0, 1).mean(1, keepdim=True)
        as_map = partial(torch.unflatten, dim=2, sizes=(GRID, -1))  # (B P, n, h w) -> (B P, n, h, w)
        x = self.norm(tokens).repeat_interleave(P, 0)  # (B P, h w, D)
        x = x + self.place + self.fuse(torch.cat([x, x * first, x * second], -1))
        around = nn.functional.adaptive_avg_pool2d(as_map(x.mT), self.grid).flatten(2).mT  # (B P, N, D)
        queries = self.start + torch.cat([around, phrase], 1)
        for layer in self.layers:
            queries = layer(queries, x)
        similar = partial(torch.matmul, other=phrase.mT / phrase.shape[-1] ** 0.5)
        match, places = (similar(self.say(each))[..., 0] + self.bias for each in (queries[:, :-1], x))
        kernels = self.mask(queries[:, :-1])  # (B P, N, D)
        rough = nn.functional.interpolate(as_map(kernels @ x.mT), scale_factor=4.0, mode="bilinear")
        detail = torch.einsum("bpnd,bdhv->bpnhv", kernels.unflatten(0, (B, P)), pixels).flatten(0, 1)
        said = self.present(queries[:, -1])[:, 0], match, rough + detail, places
        return Found(*(each.float().unflatten(0, (B, P)) for each in said))


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    words = towers.text.cpu()[PHRASES[:4]].expand(2, -1, -1, -1)
    found = SAM3(preset)(*(each[:2].cpu() for each in seen), words)
    run.show("shapes", [{"of two pictures and four phrases": name, "shape": str(tuple(each.shape))}
                        for name, each in found._asdict().items()])  # fmt: skip

# %% [markdown]
# ## Who learns from what
# Queries are matched one to one with the things that the phrase names, and pay for match and mask. Where it names nothing,
# only the presence token pays: no query has to say that there is nothing (Section 3). Places pay too, as a further head of SAM 3
# does, which gives one mask of all that a phrase names. Below, what is paid for a sure query, by what the token says.


# %%
def overlap_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Weighted cross-entropy and dice losses of mask logits (..., N, X) against masks (..., M, X): (..., N, M)."""
    p, both = ours.sigmoid(), theirs.mT
    entropy = nn.functional.softplus(ours).sum(-1, keepdim=True) - ours @ both
    dice = 1 - (2 * p @ both + 1) / (p.sum(-1, keepdim=True) + theirs.sum(-1)[..., None, :] + 1)
    return MASK * entropy / ours.shape[-1] + DICE * dice


def concept_loss(found: Found, masks: Tensor, fits: Tensor, token: bool = True) -> Tensor:
    """masks (B, M, S / 2, S / 2) of things, fits (B, P, M) where a phrase names them. Without the token, queries pay for all."""
    entropy = nn.functional.binary_cross_entropy_with_logits
    pairs = overlap_loss(found.masks.flatten(3), masks.flatten(2)[:, None])  # (B, P, N, M)
    cost = (pairs - found.match.sigmoid()[..., None]).detach().masked_fill(~fits[:, :, None], torch.inf)
    owner = hungarian(cost.flatten(0, 1)).unflatten(0, cost.shape[:2])  # (B, P, N)
    matched, present = owner >= 0, fits.any(-1)
    paid = pairs.gather(3, owner.clamp(min=0)[..., None])[..., 0] * matched
    match = entropy(found.match, matched.float(), reduction="none") * (present[..., None] if token else 1)
    presence = entropy(found.presence, present.float()) if token else 0
    covered = fits.float() @ nn.functional.avg_pool2d(masks, 4).flatten(2)  # (B, P, h w)
    return (paid + match).sum() / matched.sum().clamp(min=1) + presence + DENSE * entropy(found.places, covered.float())


if __name__ == "__main__":
    mask, paid = torch.full((1, 1, 1, 24, 24), 9.0), []
    for absent, sign in ((absent, sign) for absent in (False, True) for sign in (1, -1)):
        places = torch.full((1, 1, GRID**2), -9.0 if absent else 9.0)
        sure = Found(torch.tensor([[4.0 * sign]]), torch.full((1, 1, 1), 4.0), mask, places)
        loss = concept_loss(sure, torch.ones(1, 1, 24, 24), torch.tensor([[[not absent]]]))
        paid.append({"the concept is": "absent" if absent else "there", "the token says": "yes" if sign > 0 else "no",
                     "score of a sure query": sure.scores().item(), "loss": loss.item()})  # fmt: skip
    run.show("loss", paid)

# %% [markdown]
# ## Train it
# Four phrases about each scene: two that are there, one far and one near; three times as long as each network of the
# experiments. Then three about each test scene; a scene answers where a query scores above one half.


# %%
def loss_of(model: nn.Module, tokens: Tensor, pixels: Tensor, masks: Tensor, names: Tensor, chance: Tensor, *, text: Tensor,
            wanted: tuple[int, ...], token: bool, generator: torch.Generator) -> Tensor:  # fmt: skip
    """`text` (C, 2, D) are the words of all phrases."""
    asked = draw(chance, wanted, generator)
    fits = names.gather(1, asked[..., None].expand(-1, -1, names.shape[-1]))  # (B, P, M)
    return concept_loss(model(tokens, pixels, text[asked]), masks, fits, token)


@cache
def train(
    run: Run, seed: int, rate: float, wanted: tuple[int, ...] = HARD, token: bool = True, rounds: int = 1
) -> SAM3:
    """A network for this seed that was asked for phrases of these kinds."""
    preset, device, steps = PRESETS[run.preset], run.device, rounds * PRESETS[run.preset].steps
    text, truth = towers_of(run, seed).text[PHRASES.to(device)], scenes("train", preset.scenes[0], seed)[2:]
    given = [*seen_of(run, seed, "train"), *(each.to(device) for each in truth)]
    seed_everything(seed)
    model, generator = SAM3(preset), torch.Generator(device).manual_seed(seed)
    loss = partial(loss_of, text=text, wanted=wanted, token=token, generator=generator)
    batches = minibatches(given, preset.batch, steps, seed)
    fit(model, batches, loss, steps=steps, learning_rate=rate * preset.rate, device=device)
    return model


@torch.inference_mode()
def ask(model: SAM3, seen: Seen, text: Tensor, asked: Tensor) -> Found:
    """What is found of the phrases `asked` (n, P) in what is seen of n pictures, on the CPU; `text` (W, D) are the words."""
    words, parts = text[PHRASES.to(text.device)], (*seen, asked.to(text.device))
    found = [
        model(tokens, pixels, words[phrases])
        for tokens, pixels, phrases in zip(*(x.split(100) for x in parts), strict=True)
    ]
    return Found(*(torch.cat([each.cpu() for each in part]) for part in zip(*found, strict=True)))


if __name__ == "__main__":
    model = train(run, run.seeds[0], RATE, rounds=3)
    asked = draw(test.chance, (THERE, NEAR, FAR), torch.Generator().manual_seed(run.seeds[0]))
    found = ask(model, seen, towers.text, asked)
    answered = (found.scores() > 0.5).any(-1).float().mean(0)
    presence, share = found.presence.sigmoid().mean(0).tolist(), (100 * answered).tolist()
    run.show("trained", [{"phrases": kind, "presence, mean": presence[place], "scenes that answer (%)": share[place]}
                         for place, kind in enumerate(("there", "near", "far"))])  # fmt: skip

# %% [markdown]
# ## What comes out
# Three test scenes, each asked for the name of a thing, for a single word that names two things, and for a near phrase.


# %%
def bright(found: Found) -> Tensor:
    """Where a sure query has its mask (n, P, S, S)."""
    sure = found.scores() > 0.5  # (n, P, N)
    masks = nn.functional.interpolate(found.masks.flatten(0, 1), scale_factor=2.0, mode="bilinear") > 0
    return (masks.unflatten(0, sure.shape[:2]) & sure[..., None, None]).any(2)


if __name__ == "__main__":
    answers = ask(model, Seen(*(each[which.to(each.device)] for each in seen)), towers.text, phrases)
    titles = [f"{SAID[phrase]}\npresence {sure:.0%}"
              for phrase, sure in zip(phrases.flatten(), answers.presence.sigmoid().flatten(), strict=True)]  # fmt: skip
    run.figure("found", partial(draw_answers, images=test.images[which], inside=bright(answers), titles=titles),
               caption="Test scenes asked for three phrases: a name, one word that names two things, and a phrase that shares a "
               "word with a thing but names none. What is found is bright; not all of it is right.",
               alt="Scenes of coloured shapes in three columns, each dimmed but for what the phrase above it names.")  # fmt: skip

# %% [markdown]
# ## Your own image
# The published SAM 3, from the hub of transformers, on a photograph or on yours. Its weights are behind a request and under
# terms of their own, the SAM License: ask on the page of the model and log in with `hf auth login`.


# %%
def published(image: Any, phrase: str = "wheel") -> Tensor:
    """Masks (n, H, W) of all that the phrase names."""
    from transformers import Sam3Model, Sam3Processor

    processor, network = Sam3Processor.from_pretrained(PUBLISHED), Sam3Model.from_pretrained(PUBLISHED).eval()
    inputs = processor(images=image, text=phrase, return_tensors="pt")
    with torch.inference_mode():
        said = network(**inputs)
    sizes = [(image.height, image.width)]
    (found,) = processor.post_process_instance_segmentation(said, threshold=0.5, target_sizes=sizes)
    return found["masks"]


def draw_published(style: Style, image: Any, masks: Tensor) -> Figure:
    figure, axes = panels(1, 1, width=5.4, height=5.4 * image.height / image.width)
    show_image(axes[0, 0], image)
    outside = (~masks.cpu().bool().any(0)).float().numpy()
    axes[0, 0].imshow(outside, cmap="gray_r", vmin=0, vmax=1, alpha=0.7 * outside)
    return figure


if __name__ == "__main__":
    photograph, gated = weights.picture(run, "motorcycle"), f"{PUBLISHED} (behind a request, under the SAM License)"
    masks = weights.published(run, gated, partial(published, photograph), megabytes=3450)
    if masks is not None:
        run.figure("your_own_image", partial(draw_published, image=photograph, masks=masks),
                   caption=f"What {PUBLISHED} finds on a photograph when it is asked for a wheel.",
                   alt=f"A photograph, dimmed but for {len(masks)} masks of wheels.")  # fmt: skip
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A few convolutions and ten words, trained on masks, stand for the two towers, which learned from pictures with captions.
# - Picture and phrase meet in a product, not in six layers of cross-attention. One decoder layer instead of six, no boxes that
#   are refined, no example boxes, no video. Queries start from the places of a grid, not from learned vectors.
# - Hard negatives are phrases that share a word with a thing; in the paper they are what an earlier model fell for.
