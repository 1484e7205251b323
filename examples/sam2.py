# %% [markdown]
# # SAM 2: what is it worth to remember the object while it is hidden?
#
# A click in the first frame says which of two digits is meant. Both pass behind a post, and half of the time they change sides
# there, so only their look tells who comes out where. A small SAM 2 reads one frame after the other, with a memory of the
# frames before. The experiments ask what is left where that memory is shorter, or missing.
#
# | symbol (card, arXiv:2408.00714) | here | meaning |
# |---|---|---|
# | $F_t$ | `frame` | embedding of the frame, (B, h w, D) |
# | $M_{t-1}, \dots$ | `memories` | embeddings of earlier frames, and the same with their masks folded in, (B, k, h w, 2 D) |
# | $M_p$ | the first of them | memory of the frame with the prompt, which is never dropped |
# | $F_t'$ | `conditioned` | embedding of the frame after it has looked at the memories |
# | | `Answer` | logits of the mask (B, S, S), and of the object being visible (B,) |

# %%
# mypy: disable-error-code="no-any-return, no-untyped-call"
from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from lab import weights
from lab.boxes import grid_points
from lab.data.occluded import FRAMES, SIDE, Clips, occluded
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.training import fit, minibatches, seed_everything
from torch import Tensor, nn
from torchvision.ops import MLP, Conv2dNormActivation

RATE = 16e-3  # peak learning rate, see claims/sam2.searches.json
STRIDE = 4  # of the embedding
SYNCHRONISATIONS_PER_STEP = 0  # frames are drawn on the device


class Preset(NamedTuple):
    """Steps and clips in a step, D, width of the feed-forward network, numbers of training and test clips, factor on the rate."""

    steps: int = 300
    batch: int = 16
    width: int = 32
    hidden: int = 64
    clips: tuple[int, int] = (800, 100)
    rate: float = 1.0


PRESETS = {
    "smoke": Preset(4, 4, 16, 16, (12, 8)),
    "quick": Preset(),
    "full": Preset(8000, 64, 128, 512, (8000, 500), 0.25),
}

# %% [markdown]
# ## What to remember
# A memory bank holds the frame with the prompt, for good, and the last few frames. It has one size however long the video is.


# %%
Bank = Callable[[Tensor], Tensor]


def prompted_and_recent(time: Tensor) -> Tensor:
    """Which frames are remembered at times (B,): the first one and the last three, (B, 4); -1 for none."""
    recent = time[:, None] - torch.arange(1, 4, device=time.device)
    first = torch.where(time > 3, 0, -1)  # until then it is one of the last three
    return torch.cat([first[:, None], recent.clamp(min=-1)], 1)


if __name__ == "__main__":
    run = Run.start("sam2", pretrained=True)
    preset = PRESETS[run.preset]
    remembered = prompted_and_recent(torch.arange(FRAMES)).tolist()
    run.show("bank", [{"at frame": time, "remembers": ", ".join(str(each) for each in sorted(row) if each >= 0) or "nothing"}
                      for time, row in enumerate(remembered)])  # fmt: skip

# %% [markdown]
# ## Look at the memories, then draw
# The memory encoder folds the mask of a frame into its embedding. The frame at hand attends to the memories; where there are
# none yet, the click is added at its place. A small decoder draws the mask, with the fine map of the frame, and a head says
# whether the object is there at all:
# $$F_t' = \mathrm{MemoryAttention}\big(F_t,\ \{M_{t-N}, \dots, M_{t-1}\} \cup \{M_p\}\big)$$


# %%
class Answer(NamedTuple):
    """Logits of the mask (B, S, S) and of the object being visible (B,)."""

    mask: Tensor
    visible: Tensor


class MemoryAttention(nn.Module):
    """Each token of a frame (B, n, D) reads values (B, m, D) where their keys (B, m, D) look like it -> (B, n, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.look, self.write = nn.Linear(width, width), nn.Linear(width, width)
        self.mlp = MLP(width, [hidden, width], inplace=None)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, frame: Tensor, keys: Tensor, values: Tensor, ignored: Tensor) -> Tensor:
        """`ignored` (B, m): memories that do not count. One projection for both sides, so that equals are near from the start."""
        q, k = self.look(frame), self.look(keys)
        near = (2 * q @ k.mT - k.square().sum(-1)[:, None]) / q.shape[
            -1
        ] ** 0.5  # minus the distance, but for a constant
        read = near.masked_fill(ignored[:, None], -torch.inf).softmax(-1) @ values
        x = self.norms[0](frame + self.write(read))
        return self.norms[1](x + self.mlp(x))


class SAM2(nn.Module):
    """Frames, memories and a click -> `Answer`; see `encode`, `remember` and `answer`."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        width = preset.width
        self.fine = Conv2dNormActivation(3, width // 2, stride=2)
        coarse = [Conv2dNormActivation(width // 2, width, stride=2), Conv2dNormActivation(width, width)]
        self.coarse = nn.Sequential(*coarse)
        self.fold, self.click, self.nothing = (nn.Parameter(torch.randn(1, width)) for _ in range(3))
        self.age = nn.Parameter(torch.zeros(4, width))
        self.points = nn.Buffer(grid_points(SIDE // STRIDE))  # (h w, 2)
        self.attend = MemoryAttention(width, preset.hidden)
        self.up, self.side = nn.ConvTranspose2d(width, width // 2, 2, 2), nn.Conv2d(width // 2, width // 2, 1)
        self.draw, self.seen = nn.ConvTranspose2d(width // 2, 1, 2, 2), nn.Linear(width, 1)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (n, 3, S, S) -> fine map (n, D / 2, S / 2, S / 2) and embedding (n, D, h, w)."""
        fine = self.fine(frames)
        return fine, self.coarse(fine)

    def remember(self, embedding: Tensor, masks: Tensor) -> Tensor:
        """Memories (n, h w, 2 D) of embeddings (n, D, h, w) and their masks (n, S, S): without and with the mask."""
        part, tokens = nn.functional.avg_pool2d(masks[:, None].to(embedding.dtype), STRIDE), embedding.flatten(2).mT
        return torch.cat([tokens, tokens + part.flatten(2).mT * self.fold], -1)

    def answer(self, fine: Tensor, embedding: Tensor, memories: Tensor, known: Tensor, click: Tensor) -> Answer:
        """memories (B, k, h w, 2 D) of which those count that are `known` (B, k); click (B, 2) as x and y in pixels."""
        keys, values = memories.chunk(2, -1)  # (B, k, h w, D) each
        sides = keys.flatten(1, 2), (values + self.age[: values.shape[1], None]).flatten(1, 2)
        keys, values = (torch.cat([each, self.nothing.expand(len(each), -1, -1)], 1) for each in sides)
        ignored = nn.functional.pad((~known).repeat_interleave(len(self.points), 1), (0, 1), value=False)
        near = torch.exp(-50 * (self.points - click[:, None] / SIDE).square().sum(-1, keepdim=True))  # (B, h w, 1)
        prompt = near * self.click * ~known.any(1)[:, None, None]  # only a frame without memories needs the click
        frame = embedding.flatten(2).mT + prompt
        conditioned = self.attend(frame, keys, values, ignored)
        drawn = nn.functional.gelu(self.up(conditioned.mT.reshape(embedding.shape)) + self.side(fine))
        return Answer(self.draw(drawn)[:, 0].float(), self.seen(conditioned.amax(1))[:, 0].float())


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model, clips = SAM2(preset), occluded("test", 2, run.seeds[0])
    fine, embedding = model.encode(clips.frames[:, 1])
    first = model.remember(model.encode(clips.frames[:, 0])[1], clips.masks[:, 0])[:, None]
    said = model.answer(fine, embedding, first, torch.ones(2, 1, dtype=torch.bool), clips.clicks)
    sizes = {"embedding": embedding, "memory of one frame": first, "mask": said.mask, "visible": said.visible}
    run.show("shapes", [{"of two clips": name, "shape": str(tuple(each.shape))} for name, each in sizes.items()])

# %% [markdown]
# ## Train it
# For each clip of a batch a frame is drawn at random. Its mask has to be found from the memories of earlier frames, here with
# their true masks, so that all frames of a step are encoded at once. A hidden object has no mask to pay for; whether it is
# visible is learned in every frame.


# %%
def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy and dice loss of each mask: (B, S, S) -> (B,)."""
    y, p = target.float(), logits.sigmoid()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none").mean((1, 2))
    return 5 * cross_entropy + 1 - (2 * (p * y).sum((1, 2)) + 1) / (p.sum((1, 2)) + y.sum((1, 2)) + 1)


def loss_of(
    model: SAM2, frames: Tensor, masks: Tensor, click: Tensor, *, bank: Bank, generator: torch.Generator
) -> Tensor:
    """Of clips (B, T, 3, S, S) with masks (B, T, S, S): what a frame drawn from each pays."""
    B, T, device = *masks.shape[:2], frames.device
    time = torch.randint(T, (B,), generator=generator, device=device)
    wanted, row = bank(time), torch.arange(B, device=device)  # (B, k), (B,)
    index, k = torch.cat([time[:, None], wanted.clamp(min=0)], 1), wanted.shape[1]  # (B, 1 + k)
    fine, embedding = (
        each.unflatten(0, (B, 1 + k)) for each in model.encode(frames[row[:, None], index].flatten(0, 1))
    )
    memories = model.remember(embedding[:, 1:].flatten(0, 1), masks[row[:, None], index[:, 1:]].flatten(0, 1))
    said = model.answer(fine[:, 0], embedding[:, 0], memories.unflatten(0, (B, k)), wanted >= 0, click)
    target = masks[row, time]
    visible = target.flatten(1).any(1).float()
    drawn = (mask_loss(said.mask, target) * visible).sum() / visible.sum().clamp(min=1)
    return drawn + nn.functional.binary_cross_entropy_with_logits(said.visible, visible)


@cache
def train(run: Run, seed: int, rate: float, bank: Bank) -> SAM2:
    """A network for this seed that remembers what `bank` says."""
    preset, device = PRESETS[run.preset], run.device
    seed_everything(seed)
    model, generator = SAM2(preset), torch.Generator(device).manual_seed(seed)
    data = [each.to(device) for each in occluded("train", preset.clips[0], seed)]
    batches, loss = (
        minibatches(data, preset.batch, preset.steps, seed),
        partial(loss_of, bank=bank, generator=generator),
    )
    fit(model, batches, loss, steps=preset.steps, learning_rate=rate * preset.rate, device=device)
    return model


@torch.inference_mode()
def follow(model: SAM2, clips: Clips, bank: Bank) -> Tensor:
    """Masks (n, T, S, S) of whole clips on the CPU, frame by frame from the click, with its own masks in the memory."""
    device = next(model.parameters()).device
    frames, click = clips.frames.to(device), clips.clicks.to(device)
    n, T = frames.shape[:2]
    fine, embedding = (each.unflatten(0, (n, T)) for each in model.encode(frames.flatten(0, 1)))
    stored = torch.zeros(n, T, len(model.points), 2 * embedding.shape[2], device=device)
    found = torch.zeros(n, T, SIDE, SIDE, dtype=torch.bool, device=device)
    for time in range(T):
        wanted = bank(torch.full((n,), time, device=device))
        memories = stored[torch.arange(n, device=device)[:, None], wanted.clamp(min=0)]
        said = model.answer(fine[:, time], embedding[:, time], memories, wanted >= 0, click)
        found[:, time] = (said.mask > 0) & (said.visible > 0)[:, None, None]
        stored[:, time] = model.remember(embedding[:, time], found[:, time])
    return found.cpu()


def ious(found: Tensor, masks: Tensor) -> Tensor:
    """IoU of each frame, (n, T); NaN where there is nothing and nothing is found."""
    return (found & masks).sum((2, 3)) / (found | masks).sum((2, 3))


if __name__ == "__main__":
    model = train(run, run.seeds[0], RATE, prompted_and_recent)
    test = occluded("test", preset.clips[1], run.seeds[0])
    found = follow(model, test, prompted_and_recent)
    shown, iou = test.masks.flatten(2).any(2), ious(found, test.masks)
    run.show("trained", [{"frame": time, "object visible (%)": 100 * shown[:, time].float().mean().item(),
                          "IoU": iou[shown[:, time], time].mean().item() if shown[:, time].any() else "-"}
                         for time in range(FRAMES)])  # fmt: skip

# %% [markdown]
# ## Lost from sight, and found again
# Test clips in which the two digits change sides behind the post. The star is the only click, the outline is what was found.


# %%
def show_found(ax: Any, frame: Tensor, mask: Tensor, title: str | None) -> None:
    """A frame (3, S, S) with the outline of a mask (S, S)."""
    show_image(ax, frame, title)
    if mask.any():
        ax.contour(mask.float().numpy(), [0.5], colors=["#FF4FD8"], linewidths=1.6)


def draw_clips(style: Style, clips: Clips, found: Tensor) -> Figure:
    times = (0, 1, FRAMES // 2, FRAMES - 1)
    figure, axes = panels(len(found), len(times), width=5.4, height=1.4 * len(found) + 0.3)
    for row, (line, frames, masks, click) in enumerate(zip(axes, clips.frames, found, clips.clicks, strict=True)):
        for ax, time in zip(line, times, strict=True):
            show_found(ax, frames[time], masks[time], None if row else f"frame {time}")
        line[0].plot(*(click - 0.5).tolist(), "*", color="#F2D34B", markeredgecolor="black", markersize=11)
    return figure


def swapped(clips: Clips) -> Tensor:
    """Whether the object is in the other half of the picture in the last frame than in the first, (n,)."""
    below = clips.masks[:, :, SIDE // 2 :].flatten(2).any(2)
    return below[:, 0] != below[:, -1]


if __name__ == "__main__":
    some = swapped(test).nonzero()[:3, 0]
    chosen = Clips(*(each[some] for each in test))
    run.figure("clips", partial(draw_clips, clips=chosen, found=found[some]),
               caption="The first test clips in which the digits change sides while they are hidden.",
               alt="Three clips of two digits that pass behind a post; the clicked one is outlined.")  # fmt: skip

# %% [markdown]
# ## Your own image
# The published SAM 2.1 Hiera-T, from the hub of transformers: a picture is a video of one frame. Three masks for one click.


# %%
def published(image: Any) -> weights.Masks:
    from transformers import Sam2Model, Sam2Processor

    name = "facebook/sam2.1-hiera-tiny"
    processor, network = Sam2Processor.from_pretrained(name), Sam2Model.from_pretrained(name).eval()
    point = [image.width / 2, image.height / 2]
    inputs = processor(images=image, input_points=[[[point]]], input_labels=[[[1]]], return_tensors="pt")
    out = network(**inputs)
    (masks,) = processor.post_process_masks(out.pred_masks, inputs["original_sizes"])
    return masks[0], [f"rated {rating:.2f}" for rating in out.iou_scores[0, 0]], point


if __name__ == "__main__":
    weights.show_masks(run, "facebook/sam2.1-hiera-tiny", published, megabytes=160, otherwise="coffee")
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - A few convolutions stand for Hiera, one layer of memory attention for four, two convolutions for the mask decoder with its
#   two-way blocks; there is one mask for a click, and no rating. There are no object pointers, and clicks come in frame 0 only.
# - Memories are matched by distance, with one projection for both sides, and without places: by their look alone.
# - The bank holds three recent frames instead of six. The click is a bump around its place, not a token.
# - In training the memories hold true masks; in the paper, those that the network predicted for the frames before.
# - Clips have 8 frames of 32 px and two digits. What holds here explains the memory and says nothing about SA-V.
