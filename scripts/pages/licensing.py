"""The page Licences of the models: one row for each release."""

from __future__ import annotations

from scripts.evidence import terms
from scripts.evidence.knowledge import Knowledge
from scripts.pages.environment import template
from scripts.pages.writer import common


def page(knowledge: Knowledge) -> str:
    """The text of `licensing/index.md`."""
    rows = terms.rows(knowledge)
    datasets, packages = ({each.name: each for row in rows for each in getattr(row, of)} for of in ("data", "packages"))
    return template("licensing.md.j2").render(
        common(knowledge, "../") | {
            "rows": rows, "uses": terms.all_uses(knowledge),
            "licences": terms.licence_terms(knowledge), "datasets": [datasets[name] for name in sorted(datasets)],
            "packages": [packages[name] for name in sorted(packages, key=str.lower)],
        }
    )  # fmt: skip
