"""The page Evidence: every claim with its verdict."""

from __future__ import annotations

from collections import defaultdict

from scripts.cards import prose
from scripts.cards.schema import Card
from scripts.evidence.knowledge import Knowledge
from scripts.evidence.runs import Outcome
from scripts.evidence.verdicts import Judged
from scripts.pages.environment import LEGEND, ordered, template
from scripts.pages.writer import common


def _share(card: Card, knowledge: Knowledge) -> dict[str, object]:
    counts = defaultdict(int, {verdict.value: n for verdict, n in knowledge.verdicts(card.slug).items()})
    return {"card": card, "verdicts": counts, "tested": _tested(card, knowledge), "claims": sum(counts.values())}


def _tested(card: Card, knowledge: Knowledge) -> int:
    judged = (*knowledge.pros(card.slug), *knowledge.cons(card.slug))
    return sum(each.run is not Outcome.NONE for each in judged)


def _claim_rows(card: Card, knowledge: Knowledge) -> list[dict[str, object]]:
    """The claims of a card as rows of a table: text, verdict, anchor, and what backs each."""
    return [
        {
            "card": card, "side": side, "anchor": f"{side}-{i}", "text": prose.to_text(judged.claim.claim),
            "verdict": judged.verdict.value, "backing": _backing(judged),
        }
        for side, claims in (("pro", knowledge.pros(card.slug)), ("con", knowledge.cons(card.slug)))
        for i, judged in enumerate(claims, 1)
    ]  # fmt: skip


def _backing(judged: Judged) -> list[str]:
    kinds = {"run": judged.shown, "published figures": judged.reported, "source of the claim": judged.claim.source}
    return [name for name, there in kinds.items() if there] or ["nothing"]


def page(knowledge: Knowledge) -> str:
    """Every claim with its verdict, and the shares by model."""
    verdicts = ordered(knowledge.verdicts())
    shares = [_share(card, knowledge) for card in knowledge.cards]
    rows = [row for card in knowledge.cards for row in _claim_rows(card, knowledge)]
    return template("evidence.md.j2").render(
        common(knowledge, "../") | {
            "legend": LEGEND, "verdicts": verdicts, "claims_count": sum(verdicts.values()), "shares": shares, "rows": rows,
            "tested": sum(_tested(card, knowledge) for card in knowledge.cards),
        }
    )  # fmt: skip
