"""`python -m scripts try PICTURE`: the chosen checkpoints on the reader's own picture, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from scripts.cards.releases import Checkpoint
from scripts.cards.schema import Card
from scripts.checkpoints.attempt import attempt, refused
from scripts.checkpoints.found import Attempt, Prompt
from scripts.checkpoints.pictures import UnfitPictureError, open_picture
from scripts.checkpoints.report import Tried, page
from scripts.files import write
from scripts.machine import device_class

Chosen = tuple[Card, str, Checkpoint]


def try_picture(cards: Mapping[str, Card], options: argparse.Namespace) -> int:
    """Run what is asked for and write the page; 1 if nothing ran."""
    chosen, problems = choose(cards, options.models, options.checkpoint)
    for problem in problems:
        print(problem, file=sys.stderr)
    try:
        picture = open_picture(options.picture)
    except UnfitPictureError as error:
        print(error, file=sys.stderr)
        return 1
    if not chosen:
        return 1
    prompt = Prompt(options.point, options.box, options.text).scaled(picture.scale)
    random, device = options.weights == "random", device_class(options.device)
    tried = []
    for card, key, checkpoint in chosen:
        print(f"{card.slug}/{key}: loading {checkpoint.load.name}", flush=True)
        done = _apart(f"{card.slug}/{key}", checkpoint, picture.image, prompt, device, random)
        how = f"{done.ms:,.0f} ms on {done.device}" if done.ms is not None else done.error
        print(f"{done.id}: {how}", file=sys.stderr if done.error else sys.stdout, flush=True)
        tried.append(Tried(card.name, checkpoint, _licence(card, checkpoint), done))
    path = options.out / f"{options.picture.stem}.html"
    write(path, page(options.picture.name, picture, tried, prompt, random).encode())
    print(f"{path}: {len(tried)} tried, {sum(each.attempt.found is not None for each in tried)} ran")
    return 0 if any(each.attempt.found is not None for each in tried) else 1


def _apart(id: str, checkpoint: Checkpoint, *arguments: object) -> Attempt:
    """An attempt in a process of its own: if the system ends that one, for want of memory, the others go on."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(attempt, id, checkpoint, *arguments).result()  # type: ignore[arg-type]
    except BrokenProcessPool:
        return Attempt(id, error="its process was ended, most likely for want of memory")


def _licence(card: Card, checkpoint: Checkpoint) -> str:
    found = next((each.weights for each in card.licences.releases if each.name == checkpoint.release), None)
    return found or "not stated"


def choose(cards: Mapping[str, Card], models: Sequence[str], ids: Sequence[str]) -> tuple[list[Chosen], list[str]]:
    """The checkpoints that are asked for, and in a line each why others are not run.

    Of a model that is named alone, the first checkpoint on its card that can be tried, one without a gate if there is one.
    """
    if not models and not ids:
        tryable = [slug for slug, card in cards.items() if any(not refused(each) for each in card.checkpoints.values())]
        return [], [f"say which with --models: {', '.join(tryable) or 'no card has checkpoints that can be tried'}"]
    chosen: list[Chosen] = []
    problems: list[str] = []
    for slug in models:
        card = cards.get(slug)
        if card is None:
            problems.append(f"{slug}: no such card; there are {', '.join(cards)}")
        elif not card.checkpoints:
            problems.append(f"{slug}: its card names no checkpoint")
        elif found := _easiest(card):
            chosen.append((card, found, card.checkpoints[found]))
        else:
            problems.append(f"{slug}: {refused(next(iter(card.checkpoints.values())))}")
    for id in ids:
        slug, _, key = id.partition("/")
        card = cards.get(slug)
        if card is None or key not in card.checkpoints:
            known = f"; it has {', '.join(f'{slug}/{each}' for each in card.checkpoints)}" if card else ""
            problems.append(f"{id}: no such checkpoint{known}")
        elif why := refused(card.checkpoints[key]):
            problems.append(f"{id}: {why}")
        else:
            chosen.append((card, key, card.checkpoints[key]))
    return chosen, problems


def _easiest(card: Card) -> str | None:
    fit = [key for key, each in card.checkpoints.items() if not refused(each)]
    return next((key for key in fit if not card.checkpoints[key].gated), fit[0] if fit else None)
