# %% [markdown]
# # Attention U-Net: do the gates look where the target is?
#
# A U-Net hands the decoder everything that the encoder saw. An attention gate weighs each position of a skip by what
# the next coarser level makes of it. Here is the gate inside the U-Net of the example `unet`, trained on slices of a
# brain with planted tumours. The experiments take the gates out, open and close them.
#
# | symbol (card, arXiv:1804.03999) | here | meaning |
# |---|---|---|
# | $x^l_i$ | `x` | features of the skip of level $l$ at position $i$; level 0 is the finest |
# | $g_i$ | `g` | gating signal: the decoder's map of the next coarser level |
# | $W_x$, $W_g$, $\psi$ | `theta`, `phi`, `psi` | the gate's 1x1 maps to $F_{int}$ channels, and from them to one number |
# | $q^l_i$, $\alpha^l_i$ | `q`, `alpha` | score and coefficient of a position, the latter from 0 to 1 |
# | $\hat x^l_{i,c}$ | `alpha * x` | what passes the gate |

# %%
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from lab.data.brain import TUMOUR, BrainSlices
from lab.figures import Figure, Style, panels, show_image
from lab.run import Run
from lab.slices import CLASSES, FIXED, cropped, dices, segmented, telling_channel
from lab.training import count_parameters, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from unet import DEPTH, PRESETS, UNet, train

RATE = 2.5e-3  # peak learning rate, see claims/attention-unet.searches.json
SYNCHRONISATIONS_PER_STEP = 0  # slices and class weights lie on the device
FINEST = 1  # level of the finest gate

# %% [markdown]
# ## The gate
# Fine features and coarse signal are mapped to a few channels, added, and reduced to one number per position (Eq. 1);
# a sigmoid turns it into a coefficient:
# $$q^l_i = \psi^{\top}\,\sigma_1\!\left(W_x^{\top} x^l_i + W_g^{\top} g_i + b_g\right) + b_\psi, \qquad
# \alpha^l_i = \sigma_2(q^l_i), \qquad \hat x^l_{i,c} = \alpha^l_i\, x^l_{i,c}$$
# Both live on the coarse grid: $W_x$ has stride 2, so that $x$ meets $g$, and the coefficients are upsampled. One
# coefficient serves all channels. The last factor is all that a gate does to a skip.


# %%
class AttentionGate(nn.Module):
    """Additive attention gate on the grid of the gating signal (Eq. 1 and 2, arXiv:1804.03999).

    Args:
        fine: channels of x.
        coarse: channels of g.
        between: F_int.
    """

    def __init__(self, fine: int, coarse: int, between: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(fine, between, 2, stride=2, bias=False)  # W_x
        self.phi = nn.Conv2d(coarse, between, 1)  # W_g and b_g
        self.psi = nn.Conv2d(between, 1, 1)

    def score(self, x: Tensor, g: Tensor) -> Tensor:
        """q: x (B, C, H, W) and g (B, C', H / 2, W / 2) -> (B, 1, H / 2, W / 2)."""
        return self.psi(functional.relu(self.theta(x) + self.phi(g)))  # Eq. 1

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """alpha: x (B, C, H, W) and g (B, C', H / 2, W / 2) -> (B, 1, H, W)."""
        alpha = self.score(x, g).sigmoid()  # Eq. 2
        return functional.interpolate(alpha, size=x.shape[-2:], mode="bilinear", align_corners=False)


if __name__ == "__main__":
    run = Run.start("attention-unet", pretrained=False)
    gate, x, g = AttentionGate(16, 32, 8), torch.randn(1, 16, 48, 40), torch.randn(1, 32, 24, 20)
    parts = {"x, the skip": x, "g, the signal": g, "q": gate.score(x, g), "alpha": gate(x, g), "passes": gate(x, g) * x}
    run.show("shapes", [{"part": name, "shape": str(tuple(each.shape))} for name, each in parts.items()])

# %% [markdown]
# ## A U-Net with gates
# All of the U-Net stays, but what is laid beside the upsampled map passes a gate first. As in the official network, the
# finest skip has none: its features say too little about what they belong to. The gating signal of a level is the
# decoder's map one level below; at the bottom it is the deepest map of the encoder.


# %%
class AttentionUNet(UNet):
    """A U-Net with gates on all skips but the finest: (B, 1, H, W) images -> (B, K, H, W) scores."""

    def __init__(self, widths: Sequence[int], classes: int = CLASSES) -> None:
        super().__init__(widths, classes)
        gates = {
            str(level): AttentionGate(fine, coarse, fine // 2) for level, (fine, coarse) in enumerate(pairwise(widths))
        }
        del gates["0"]
        self.gates = nn.ModuleDict(gates)

    def beside(self, level: int, e: Tensor, below: Tensor, upsampled: Tensor) -> Tensor:
        return self.gates[str(level)](e, below) * e if str(level) in self.gates else e

    def alphas(self, images: Tensor) -> dict[int, Tensor]:
        """The coefficients of each gated level, (B, 1, H / 2^l, W / 2^l)."""
        maps = self.encode(images)
        decoded = [*self.decode(maps), maps[-1]]
        return {int(level): gate(maps[int(level)], decoded[int(level) + 1]) for level, gate in self.gates.items()}


if __name__ == "__main__":
    seed_everything(run.seeds[0])
    model, preset = AttentionUNet(PRESETS[run.preset].widths[DEPTH]), PRESETS[run.preset]
    gates, whole = count_parameters(model.gates), count_parameters(model)
    sizes = [f"level {level}: {count_parameters(each):,}" for level, each in model.gates.items()]
    run.show(
        "gates", f"{gates:,} of {whole:,} parameters lie in gates ({100 * gates / whole:.1f} %); " + ", ".join(sizes)
    )

# %% [markdown]
# ## Train it
# The slices, the loss and the steps of the U-Net example. Nobody tells the gates where a tumour is; all that they learn
# comes out of the loss of the segmentation.

# %%
if __name__ == "__main__":
    train(run, model, run.seeds[0], RATE, "cosine")
    test = cropped("test", preset.slices[2], FIXED, preset.millimetres)
    tissues = [
        f"{name.removeprefix('dice_')} {value:.2f}"
        for name, value in dices(segmented(model, test.images), test.labels).items()
    ]
    run.show("trained", "Dice on test slices: " + ", ".join(tissues))

# %% [markdown]
# ## One gate, step by step
# The gate of level 1: a fine map (one of its channels) and the coarse signal are joined to a score on the coarse grid;
# its sigmoid, upsampled, scales the fine map, which goes on to the decoder.


# %%
def outline(ax: object, labels: Tensor) -> None:
    """Draws the border of the tumours of labels (H, W) over a map of any resolution of the same slice."""
    there = (labels == TUMOUR).float().numpy()
    if there.any():
        ax.contour(there, levels=[0.5], colors="white", linewidths=1.0)  # type: ignore[attr-defined]


def draw_gate(style: Style, model: AttentionUNet, image: Tensor, labels: Tensor) -> Figure:
    """Image (1, 1, H, W) with its labels (H, W), x, and what passes; below g, q and alpha, all of level 1."""
    with torch.inference_mode():
        maps = model.encode(image.to(next(model.parameters()).device))
        x, g = maps[FINEST], model.decode(maps)[FINEST + 1]
        gate = model.gates[str(FINEST)]
        q, alpha = gate.score(x, g)[0, 0].float().cpu(), gate(x, g)[0, 0].float().cpu()  # type: ignore[operator]
    one = x[0, x[0].flatten(1).std(1).argmax()].float().cpu()
    one = one / one.quantile(0.98).clamp(min=1e-6)
    figure, axes = panels(2, 3, width=5.4, height=4.6)
    whole = {"extent": (-0.5, image.shape[3] - 0.5, image.shape[2] - 0.5, -0.5), "cmap": style.sequential}
    show_image(axes[0, 0], image[0, 0], "slice, tumours")
    for ax, values, title in (
        (axes[0, 1], one, "$x$: the skip offers"),
        (axes[0, 2], alpha * one, r"$\alpha x$: passes"),
        (axes[1, 0], telling_channel(g), "$g$: coarse signal"),
        (axes[1, 2], alpha, r"$\alpha$: coefficient"),
    ):
        show_image(ax, values, title, **whole)
    show_image(axes[1, 1], q, "$q$: score", vmin=None, vmax=None, **whole)
    for ax in axes.flat:
        outline(ax, labels)
    return figure


def telling(test: BrainSlices) -> Tensor:
    """Chosen by the truth: the slices with the most tumour, and with the least, (2,)."""
    pixels = (test.labels == TUMOUR).sum((1, 2))
    return torch.stack([pixels.argmax(), pixels.where(pixels > 0, 10**6).argmin()])


if __name__ == "__main__":
    shown = test[telling(test)]
    run.figure(
        "gate",
        partial(draw_gate, model=model, image=shown.images[:1], labels=shown.labels[0]),
        caption="The gate of level 1 of a trained network, for the test slice with the most tumour (outlined). The fine map "
        "$x$ and the coarse signal $g$ give a score $q$ on the coarse grid; its sigmoid $\\alpha$, upsampled, scales the map.",
        alt="Six maps of one brain slice with its tumours outlined: the slice, a fine feature map, the same behind the gate; "
        "below them a coarse map, a coarse map of scores, and the upsampled coefficients.",
    )

# %% [markdown]
# ## Where the gates look
# The coefficients of all gates over two slices, and what the network finds there.


# %%
def draw_maps(style: Style, model: AttentionUNet, slices: BrainSlices) -> Figure:
    """A row for each slice: the coefficients of the levels 2 and 1, and the tumour that is found."""
    figure, rows = panels(len(slices), 3, width=5.4, height=2.2 * len(slices))
    device = next(model.parameters()).device
    for place, row in enumerate(rows):
        image, labels = slices.images[[place]], slices.labels[place]
        with torch.inference_mode():
            alphas = model.alphas(image.to(device))
        whole = {"extent": (-0.5, image.shape[3] - 0.5, image.shape[2] - 0.5, -0.5), "cmap": style.sequential}
        for ax, level in zip(row, (2, 1), strict=False):
            show_image(
                ax, alphas[level][0, 0].float().cpu(), rf"$\alpha$ of level {level}" if place == 0 else None, **whole
            )
        found = (segmented(model, image)[0] == TUMOUR).float()
        picture = image[0, 0, :, :, None].repeat(1, 1, 3)
        picture[..., 0] = torch.maximum(picture[..., 0], found)
        show_image(row[2], picture, "found (red)" if place == 0 else None)
        for ax in row:
            outline(ax, labels)
    return figure


if __name__ == "__main__":
    run.figure(
        "gate_maps",
        partial(draw_maps, model=model, slices=shown),
        caption="The test slices with the most and with the least tumour (outlines: the truth). Bright lets through, dark holds "
        "back. The gates are coarse: one coefficient for 8 x 8 pixels at level 2 and for 4 x 4 at level 1, interpolated.",
        alt="Two rows of three pictures: the coefficients of the gates of level 2 and level 1 as maps over a brain slice with "
        "its tumours outlined, and the slice with the predicted tumour pixels painted in.",
    )
    run.finish()

# %% [markdown]
# ## Unlike the paper
# - Slices in 2D with few channels; the paper segments CT volumes in 3D.
# - No convolution behind the gated skip; the official code has one, with batch norm.
# - No deep supervision, so that gates are the one thing that differs from the U-Net.
# - Balanced cross entropy in place of a Dice loss, AdamW with a cosine schedule, a few hundred steps.
# - No cell with published weights: the authors published none.
