"""The part of a model's page that says how its weights are loaded: the best checkpoint's snippet, and all of them."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from scripts.cards.releases import Checkpoint, Input
from scripts.cards.schema import Card
from scripts.checkpoints.attempt import unfit
from scripts.checkpoints.chosen import chosen
from scripts.checkpoints.snippets import is_run_here, snippet
from scripts.checkpoints.sweep import left_out
from scripts.evidence.knowledge import Knowledge
from scripts.exports.checkpoints import best, best_run_here, release_of


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as the page shows it."""

    id: str
    checkpoint: Checkpoint
    variant: str
    licence: str | None
    input: str
    lines: str | None
    """The snippet, if there is one."""
    run_where: str

    @property
    def snippet(self) -> Markup | None:
        """The lines as they stand between fences of Markdown, which escapes them itself; a card's names hold no line end."""
        return Markup(self.lines) if self.lines else None


def view(card: Card, knowledge: Knowledge) -> dict[str, object] | None:
    """What the template takes; None for a card without checkpoints."""
    if not card.checkpoints:
        return None
    shown = {key: _loaded(key, checkpoint, card) for key, checkpoint in card.checkpoints.items()}
    first, easy = best(card, knowledge), best_run_here(card, knowledge)
    assert first is not None
    return {
        "best": shown[first],
        "easy": shown[easy] if easy and easy != first and not is_run_here(card.checkpoints[first]) else None,
        "all": list(shown.values()),
        "tried_on": _tried_on(card),
        "why_not": why_not(card),
    }


def _tried_on(card: Card) -> str | None:
    """The file that the line on the reader's own picture names: a model of clips wants a clip."""
    return "picture.jpg" if chosen(card) else "clip.gif" if chosen(card, "clip") else None


def why_not(card: Card) -> str:
    """Why none of a card's checkpoints can be tried or shown here."""
    if not card.checkpoints:
        return "its card names no weights that can be loaded"
    return "; ".join(dict.fromkeys(unfit(each) or "" for each in card.checkpoints.values()))


def run_where(checkpoint: Checkpoint) -> str:
    """Who runs the snippet of a checkpoint, in a sentence."""
    load = checkpoint.load
    if snippet(checkpoint) is None:
        return f"It loads with {load.class_} of {load.library}, which takes more than a few lines: {load.name}."
    return left_out(checkpoint) or "A run each week tests these lines with the real weights."


def _loaded(key: str, checkpoint: Checkpoint, card: Card) -> Loaded:
    variant, _, _ = checkpoint.system.partition("/")
    release = release_of(card, checkpoint)
    return Loaded(
        key,
        checkpoint,
        card.variants[variant].name if variant in card.variants else variant,
        release.weights if release else None,
        input_text(checkpoint.input),
        snippet(checkpoint),
        run_where(checkpoint),
    )


def input_text(taken: Input) -> str:
    """`RGB in [0, 1], mean 0.485 0.456 0.406, deviation 0.229 0.224 0.225, sides divisible by 32`."""
    low, high = (f"{bound:g}" for bound in taken.range)
    parts = [f"{taken.channels} in [{low}, {high}]"]
    for name in ("mean", "deviation"):
        if values := getattr(taken, name):
            parts.append(f"{name} {' '.join(f'{value:g}' for value in values)}")
    if taken.divisible_by > 1:
        parts.append(f"sides divisible by {taken.divisible_by}")
    return ", ".join(parts)
