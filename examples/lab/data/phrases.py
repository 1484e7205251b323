"""Phrases about scenes of named things: which are there, which are nearly there, and which are far from all that is there."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lab.data import Split
from lab.data.named import NAMES, SPELLING, WORDS, named

THERE, NEAR, FAR = range(3)
PHRASES = torch.cat([SPELLING, torch.arange(len(WORDS))[:, None].expand(-1, 2)])  # (C, 2): one word takes both places
SINGLE = len(SPELLING)  # the first phrase of one word
SAID = [" ".join(dict.fromkeys(WORDS[word] for word in phrase)) for phrase in PHRASES]


class Scenes(NamedTuple):
    """Images (n, 3, S, S), labels (n, M), masks (n, M, S / 2, S / 2) from 0 to 1; which phrases name which things (n, C, M), and
    the chance that a phrase is asked among those that are there, near and far (n, 3, C)."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    names: Tensor
    chance: Tensor


def concepts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """`names` and `chance` of scenes with labels (n, M). A phrase names a thing if its name holds all words of the phrase; it is
    near if it names nothing, but shares a word with a thing. Phrases of two words are asked twice as often as those of one."""
    spelled = nn.functional.pad(SPELLING, (0, 0, 0, 1), value=-1)[labels]  # (n, M, 2)
    heard = (PHRASES[:, None, :, None] == spelled[:, None, :, None]).any(
        -1
    )  # (n, C, M, 2): does its name hold the word?
    names, shares = heard.all(-1), heard.any(-1).any(-1)
    there = names.any(-1)
    kinds = torch.stack([there, shares & ~there, ~shares], 1)
    return names, kinds * (1.0 + (PHRASES[:, 0] != PHRASES[:, 1]))


@cache
def scenes(split: Split, count: int, seed: int) -> Scenes:
    """Scenes with things of all names, and what can be said about them."""
    images, _, labels, masks = named(split, count, seed, range(len(NAMES)))
    return Scenes(images, labels, nn.functional.avg_pool2d(masks.float(), 2), *concepts(labels))


def draw(chance: Tensor, wanted: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A phrase of each of the wanted kinds for each scene (B, P), from the chances (B, 3, C)."""
    return torch.cat([torch.multinomial(chance[:, kind], 1, generator=generator) for kind in wanted], 1)


def chosen(scenes: Scenes, count: int = 3) -> tuple[Tensor, Tensor]:
    """The first scenes where one word names two things (count,), and their phrases (count, 3): a name, that word, a near one."""
    two = scenes.names[:, SINGLE:].sum(-1) > 1  # (n, W)
    which = two.any(-1).nonzero()[:count, 0]
    name, near = (scenes.chance[which, kind].argmax(-1) for kind in (THERE, NEAR))
    return which, torch.stack([name, SINGLE + two[which].int().argmax(-1), near], 1)
