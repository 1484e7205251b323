"""Where things lie: the folders of a project, all relative to its root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Project:
    """The folders of one project; the tests make tiny ones."""

    root: Path

    @property
    def cards(self) -> Path:
        return self.root / "model_cards"

    @property
    def examples(self) -> Path:
        return self.root / "examples"

    def claims_of(self, slug: str) -> Path:
        """Where the experiments behind a card stand, if they have a file of their own."""
        return self.examples / "claims" / f"{slug}.py"

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def build(self) -> Path:
        """Everything that can be made again: runs, counts, logs."""
        return self.root / "build"

    @property
    def runs(self) -> Path:
        return self.build / "runs"

    @property
    def counts(self) -> Path:
        return self.build / "counts.json"

    @property
    def kept(self) -> Path:
        """What is dear, by the hash of what it is made of."""
        return self.build / "kept"

    @property
    def site(self) -> Path:
        return self.root / "site"
