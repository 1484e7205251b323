# %% [markdown]
# # SLUG: the one question that this example answers
#
# What it shows, in three sentences.

# %%
from __future__ import annotations

from collections.abc import Sequence

import torch
from lab.figures import Style, panels, seed_bars
from lab.run import Run
from matplotlib.figure import Figure

# %% [markdown]
# ## An experiment
#
# One value per seed; the card asserts over the worst of them.


# %%
def margin(seed: int) -> float:
    """What is measured, for one seed."""
    return float(torch.rand((), generator=torch.Generator().manual_seed(seed)))


def experiment(run: Run) -> None:
    """Measure the margin for every seed, and draw it."""
    values = [margin(seed) for seed in run.progress(run.seeds, what="seeds")]
    opened = run.experiment("margin", question="Is there a margin?", data="none yet")
    opened.result("margin", values, unit="", meaning="What the number says")

    def draw(style: Style) -> Figure:
        figure, axes = panels(1, 1, height=2.5)
        seed_bars(axes[0, 0], ["margin"], [values])
        return figure

    opened.figure("margin", draw, caption="What to see in it.", alt="A bar for the margin with a dot for each seed.")


# %%
def main(argv: Sequence[str] | None = None) -> None:
    """Run the example and write its record."""
    run = Run.start("SLUG", argv=argv)
    experiment(run)
    run.finish()


if __name__ == "__main__":
    main()
