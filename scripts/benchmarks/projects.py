"""Projects made for a benchmark: many cards without examples, or many examples without cards."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from scripts.project import Project
from scripts.site.gather import settings as settings_of

TEMPLATES = Path(__file__).parent / "templates"
SHARED = ("overrides", "docs/assets", "docs/about", "requirements.txt", "requirements-run.txt")
"""Of this project, taken as they are."""


def with_cards(root: Path, source: Path, count: int, like_ours: bool = False) -> None:
    """A project of `count` cards in the folder `root`, with the theme, pages and vocabulary of the project in `source`.

    Args:
        root: made anew.
        source: this project.
        count: of the cards.
        like_ours: clones of this project's cards, 22 kB each, in the place of made ones of 3 kB.
    """
    cards = _empty_project(root, source) / "model_cards"
    texts = _clones(source / "model_cards") if like_ours else _made_cards(count)
    for name, text in itertools.islice(texts, count):
        (cards / f"{name}.yml").write_text(text, "utf-8")
    _copy_words(cards, source / "model_cards")


def with_examples(root: Path, source: Path, count: int, rounds: int) -> None:
    """A project of `count` scripts without cards: each does `rounds` of work, and draws a line with a helper of all."""
    examples = _empty_project(root, source) / "examples"
    helper, script = ((TEMPLATES / "examples" / name).read_text("utf-8") for name in ("lab.py.in", "example.py.in"))
    (examples / "lab").mkdir()
    (examples / "lab" / "__init__.py").write_text(helper.replace("ROUNDS = 0", f"ROUNDS = {rounds}"), "utf-8")
    for i in range(count):
        (examples / f"example-{i}.py").write_text(script.replace("NUMBER", str(i)), "utf-8")


def _empty_project(root: Path, source: Path) -> Path:
    for name in SHARED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, root / name)
    for name in ("model_cards", "examples"):
        (root / name).mkdir()
    settings = settings_of(Project(source))
    settings["nav"] = [entry for entry in settings["nav"] if "Reference" not in entry]
    settings["plugins"] = [plugin for plugin in settings["plugins"] if "search" in plugin]
    (root / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return root


def _made_cards(count: int) -> Iterator[tuple[str, str]]:
    """Each names its neighbour."""
    template = (TEMPLATES / "card.yml").read_text("utf-8")
    for i in range(count):
        yield f"model-{i}", template.replace("NUMBER", str(i)).replace("OTHER", f"model-{(i + 1) % count}")


def _clones(cards: Path) -> Iterator[tuple[str, str]]:
    """This project's cards, then copies under other names; without assertions over runs, for there are no examples."""
    ours = [path for path in sorted(cards.glob("*.yml")) if not path.name.startswith("_")]
    for i in itertools.count():
        for path in ours:
            card = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
            for claim in (*card["pros"], *card["cons"]):
                claim.pop("shown", None)
            text = yaml.dump({**card, "name": f"{card['name']} {i}"}, Dumper=yaml.CSafeDumper, sort_keys=False)
            yield (f"{path.stem}-{i}" if i else path.stem), text


def _copy_words(cards: Path, source: Path) -> None:
    """The vocabulary, without what names cards of this project that are not there."""

    def there(slug: str) -> bool:
        return (cards / f"{slug}.yml").is_file()

    for path in source.glob("_*.yml"):
        words = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
        for key in ("notes", "searches"):
            words.pop(key, None)
        for term in words.get("glossary", {}).values():
            term["see"] = [*filter(there, term.get("see", []))]
        if "sweeps" in words:
            words["sweeps"] = [sweep for sweep in words["sweeps"] if there(sweep["card"])]
            words["figures"] = {name: [*filter(there, slugs)] for name, slugs in words.get("figures", {}).items()}
        for key, weights in words.get("packaged", {}).items():
            words["packaged"][key] = {name: said for name, said in weights.items() if name != "card" or there(said)}
        (cards / path.name).write_text(yaml.dump(words, Dumper=yaml.CSafeDumper, sort_keys=False), "utf-8")
