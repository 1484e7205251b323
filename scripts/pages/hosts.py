"""Addresses on the host of the repository: a file, its editor, and the form for a mistake, filled in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit


@dataclass(frozen=True)
class Mistake:
    """What a reader holds for wrong, as far as the page that the link stands on knows it."""

    page: str
    """`models/detr/`."""
    place: str = ""
    """`table table1`."""
    said: str = ""
    """The words or the value."""

    @property
    def title(self) -> str:
        return f"Wrong fact: {self.page}"

    @property
    def text(self) -> str:
        """The same questions as those of .github/ISSUE_TEMPLATE/wrong-fact.yml, for hosts without forms."""
        lines = (("Page", self.page), ("Place", self.place), ("What it says", self.said))
        told = [f"{name}: {text}" for name, text in lines if text]
        return "\n\n".join([*told, "What is true: ", "Source, with the exact place: "])


def _github(mistake: Mistake) -> Mapping[str, str]:
    return {
        "template": "wrong-fact.yml", "title": mistake.title, "card": mistake.page, "place": mistake.place, "said": mistake.said,
    }  # fmt: skip


def _gitlab(mistake: Mistake) -> Mapping[str, str]:
    return {"issue[title]": mistake.title, "issue[description]": mistake.text}


def _gitea(mistake: Mistake) -> Mapping[str, str]:
    return {"title": mistake.title, "body": mistake.text}


@dataclass(frozen=True)
class Host:
    """Paths below a repository, and the fields of its form for an issue."""

    edit: str
    file: str
    issue: str
    fields: Callable[[Mistake], Mapping[str, str]]


GITHUB = Host("edit/main", "blob/main", "issues/new", _github)
GITLAB = Host("-/edit/main", "-/blob/main", "-/issues/new", _gitlab)
GITEA = Host("_edit/main", "src/branch/main", "issues/new", _gitea)
"""Also Forgejo, as on Codeberg; what else there is mostly takes a title and a body by the same names."""


@functools.cache
def host_of(repository: str) -> Host:
    """The kind of host, by its name."""
    name = urlsplit(repository).hostname or ""
    return GITHUB if "github" in name else GITLAB if "gitlab" in name else GITEA


def edit(repository: str, path: str) -> str:
    return f"{repository}/{host_of(repository).edit}/{path}"


def file(repository: str, path: str) -> str:
    return f"{repository}/{host_of(repository).file}/{path}"


def report(repository: str, page: str, place: str = "", said: str = "") -> str:
    """Where to say that something on a page is wrong."""
    host = host_of(repository)
    fields = host.fields(Mistake(page, place, said))
    return f"{repository}/{host.issue}?{urlencode({name: text for name, text in fields.items() if text})}"
