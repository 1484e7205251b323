"""`python -m scripts try PICTURE`: the chosen checkpoints on the reader's own picture, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

from scripts.cards.library import Library
from scripts.cards.packaged import Packaged
from scripts.cards.releases import Checkpoint
from scripts.cards.schema import Card
from scripts.checkpoints import network
from scripts.checkpoints.attempt import attempt, attempt_packaged, refused, takes_of, unfit
from scripts.checkpoints.found import Attempt, Prompt, unused
from scripts.checkpoints.packaged import taken_by
from scripts.checkpoints.pictures import Kind, Picture, UnfitPictureError, open_picture
from scripts.checkpoints.report import Tried, page, tried, tried_packaged
from scripts.checkpoints.sizes import LARGE, download, parameters
from scripts.files import write
from scripts.machine import device_class

T = TypeVar("T")
ENDED = "its process was ended, most likely for want of memory"
Chosen = tuple[Card, str, Checkpoint]
Tries = list[tuple[str, str, Callable[[], Tried]]]
"""Id, what is loaded, and what tries it in a process of its own."""


def try_picture(library: Library, options: argparse.Namespace) -> int:
    """Run what is asked for and write the page; 1 if nothing ran."""
    try:
        picture, prompt = _checked(options)
    except UnfitPictureError as error:
        print(error, file=sys.stderr)
        return 1
    tries, problems = _tries(library, picture, prompt, options)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not tries:
        return 1
    if options.weights != "packaged" and (offline := network.settle()):
        print(offline, file=sys.stderr)
    outcomes = []
    for id, what, run in tries:
        print(f"{id}: loading {what}", flush=True)
        outcomes.append(done := run())
        how = done.attempt
        said = how.error or (f"{how.ms:,.0f} ms on {how.device}" if how.ms is not None else f"ran on {how.device}")
        print(f"{id}: {said}", file=sys.stderr if how.error else sys.stdout, flush=True)
    for line in _unused(outcomes, prompt):
        print(line, file=sys.stderr)
    path = options.out / f"{options.picture.name.partition('.')[0]}.html"
    write(path, page(options.picture.name, picture, outcomes, prompt, options.weights == "random").encode())
    ran = sum(each.attempt.found is not None for each in outcomes)
    print(f"{path}: {len(outcomes)} tried, {ran} ran")
    return 0 if ran else 1


def _unused(outcomes: Sequence[Tried], prompt: Prompt) -> Iterator[str]:
    """For each option that some models are not shown a line that names them."""
    for option in ("--point", "--box", "--text"):
        those = [each.attempt.id for each in outcomes if option in unused(prompt, each.output)]
        if those:
            yield f"{option} is not shown to {', '.join(those)}"


def _checked(options: argparse.Namespace) -> tuple[Picture, Prompt]:
    """The picture, and what the reader points at on it; raises UnfitPictureError for what would fail after all has run."""
    picture = open_picture(options.picture)
    typed = Prompt(options.point, options.box, options.text)
    if astray := typed.astray(picture.size):
        raise UnfitPictureError(astray)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnfitPictureError(f"--out {options.out}: {error.strerror}") from None
    if not os.access(options.out, os.W_OK):
        raise UnfitPictureError(f"--out {options.out}: not to be written into")
    return picture, typed.scaled(picture.scale)


def _tries(library: Library, picture: Picture, prompt: Prompt, options: argparse.Namespace) -> tuple[Tries, list[str]]:
    """What is to be run, and in a line each why something is not."""
    device = device_class(options.device)
    if options.weights == "packaged":
        of_packages = library.vocabulary.packaged
        packaged, problems = choose_packaged(of_packages, options.models, options.checkpoint, picture.kind)
        return [
            (key, f"{each.file.package} {each.file.version}", partial(_try_packaged, key, each, picture, device))
            for key, each in packaged.items()
        ], problems
    chosen, problems = choose(library.cards, options.models, options.checkpoint, picture.kind)
    if picture.kind == "volume" and not chosen:
        fit, _ = choose_packaged(library.vocabulary.packaged, (), (), "volume")
        problems += [f"with --weights packaged a volume is looked at by {', '.join(fit)}"] if fit else []
    rest = (picture, prompt, device, options.weights == "random")
    return [
        (f"{card.slug}/{key}", download(card, each), partial(_try_checkpoint, card, key, each, *rest))
        for card, key, each in chosen
    ], problems


def _try_checkpoint(card: Card, key: str, checkpoint: Checkpoint, *rest: object) -> Tried:
    done = _apart(attempt, f"{card.slug}/{key}", checkpoint, *rest)
    return tried(card.name, checkpoint, _licence(card, checkpoint), done)


def _try_packaged(key: str, packaged: Packaged, *rest: object) -> Tried:
    return tried_packaged(packaged, _apart(attempt_packaged, key, packaged, *rest))


def _apart(run: Callable[..., Attempt], id: str, *arguments: object) -> Attempt:
    return in_a_process(run, id, *arguments) or Attempt(id, error=ENDED)


def in_a_process(run: Callable[..., T], *arguments: object) -> T | None:
    """What a function returns in a process of its own; None if the system ends that one, so that others go on."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(run, *arguments).result()
    except BrokenProcessPool:
        return None


def choose_packaged(
    packaged: Mapping[str, Packaged], models: Sequence[str], ids: Sequence[str], kind: Kind
) -> tuple[dict[str, Packaged], list[str]]:
    """The weights of packages that look at a kind of thing: those that are named or shown on the named cards, or all."""
    named = [*models, *ids]
    wanted = {key: each for key, each in packaged.items() if not named or each.card in models or key in ids}
    lacking = [slug for slug in models if not any(each.card == slug for each in packaged.values())]
    fit = {key: each for key, each in wanted.items() if (taken_by(each) == "volume") == (kind == "volume")}
    problems = [f"{slug}: no package carries weights that are shown on its page" for slug in lacking]
    problems += [f"{id}: no weights of a package; there are {', '.join(packaged)}" for id in ids if id not in packaged]
    problems += [
        f"{key}: takes a {taken_by(each)}, and this is a {kind}" for key, each in wanted.items() if key not in fit
    ]
    return fit, problems if named or not fit else []


def _licence(card: Card, checkpoint: Checkpoint) -> str:
    found = next((each.weights for each in card.licences.releases if each.name == checkpoint.release), None)
    return found or "not stated"


def choose(
    cards: Mapping[str, Card], models: Sequence[str], ids: Sequence[str], kind: Kind = "picture"
) -> tuple[list[Chosen], list[str]]:
    """The checkpoints that are asked for, and in a line each why others are not run.

    Of a model that is named alone, the first checkpoint on its card that can be tried, one without a gate if there is one.
    """
    if not models and not ids:
        tryable = [
            slug for slug, card in cards.items() if any(not unfit(each, kind) for each in card.checkpoints.values())
        ]
        return [], [f"say which with --models: {', '.join(tryable) or 'no card has checkpoints that can be tried'}"]
    chosen: list[Chosen] = []
    problems: list[str] = []
    for slug in models:
        card = cards.get(slug)
        if card is None:
            problems.append(f"{slug}: no such card; there are {', '.join(cards)}")
        elif not card.checkpoints:
            problems.append(f"{slug}: its card names no checkpoint")
        elif found := easiest(card, kind):
            chosen.append((card, found, card.checkpoints[found]))
        else:
            problems.append(f"{slug}: {refused(next(iter(card.checkpoints.values())), kind)}")
    for id in ids:
        slug, _, key = id.partition("/")
        card = cards.get(slug)
        if card is None or key not in card.checkpoints:
            known = f"; it has {', '.join(f'{slug}/{each}' for each in card.checkpoints)}" if card else ""
            problems.append(f"{id}: no such checkpoint{known}")
        elif why := refused(card.checkpoints[key], kind):
            problems.append(f"{id}: {why}")
        else:
            chosen.append((card, key, card.checkpoints[key]))
    return chosen, problems


def easiest(card: Card, kind: Kind = "picture") -> str | None:
    """The first checkpoint of a card for something of a kind; if there is one made for it, without a gate and not huge, that."""
    fit = [key for key, each in card.checkpoints.items() if not refused(each, kind)]
    return min(fit, key=lambda key: _hardness(card, card.checkpoints[key], kind), default=None)


def _hardness(card: Card, checkpoint: Checkpoint, kind: Kind) -> tuple[bool, bool, bool]:
    return takes_of(checkpoint) != kind, checkpoint.gated, (parameters(card, checkpoint) or 0) > LARGE
