"""What the site offers to programs: `site/api/`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from scripts.architectures.scaling import LABELS, Measured
from scripts.architectures.studies import Anatomy
from scripts.cards.numbers import Cite
from scripts.cards.schema import Card, Relation, Stated
from scripts.evidence.knowledge import SIZE_METRICS, Knowledge
from scripts.evidence.published import TRAINING, Published, System, index, own_size
from scripts.evidence.runs import Finding, Outcome
from scripts.evidence.systems import SIZES, Cost, cost, measured_times, systems_of, times
from scripts.evidence.verdicts import Judged, joined
from scripts.exports import checkpoints


def overview(knowledge: Knowledge) -> dict[str, str]:
    """The list of all models, by path below `docs/`."""
    slugs = [card.slug for card in knowledge.cards]
    return {"api/models.json": _json({"schema": 1, "generated": dict(knowledge.generated), "models": slugs})}


def of_card(card: Card, knowledge: Knowledge) -> dict[str, str]:
    """The file of one model, by path below `docs/`."""
    return {f"api/models/{card.slug}.json": _json(model(card, knowledge))}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n"


def model(card: Card, knowledge: Knowledge) -> dict[str, object]:
    """All that is known of one model. Prose is Markdown as in the card."""
    return {
        **_paper(card),
        "slug": card.slug,
        "name": card.name,
        "family": card.family,
        "tasks": list(card.tasks),
        "purpose": card.purpose,
        "concept": card.concept,
        "confused_with": list(card.confused_with),
        "licences": {**card.licences.model_dump(exclude={"source"}), **_place(card.licences.source)},
        "pros": [_claim(judged) for judged in knowledge.pros(card.slug)],
        "cons": [_claim(judged) for judged in knowledge.cons(card.slug)],
        "use_when": [advice.when for advice in card.use_when],
        "avoid_when": [advice.when for advice in card.avoid_when],
        "alternatives": sorted({advice.choose for advice in card.avoid_when if advice.choose}),
        "builds_on": [relation.card for relation in card.builds_on if relation.card],
        "succeeded_by": [relation.card for relation in card.succeeded_by if relation.card],
        "lineage": {
            "builds_on": [_relation(relation) for relation in card.builds_on],
            "succeeded_by": [_relation(relation) for relation in card.succeeded_by],
        },
        "variants": [_variant(card, key, knowledge) for key in card.variants],
        "systems": [
            _system(system, numbers, knowledge) for system, numbers in systems_of(knowledge, card.slug).items()
        ],
        "checkpoints": checkpoints.checkpoints(card),
        "anatomy": _anatomy(card.slug, knowledge.studies.anatomies.get(card.slug)),
        "scaling": [_sweep(measured) for measured in knowledge.studies.of(card.slug)],
        "example": _example(card, knowledge),
        "limitations": [_stated(stated) for stated in card.limitations],
        "references": [
            {**reference.model_dump(mode="json"), "id": key, "url": reference.url or reference.addresses[0][1]}
            for key, reference in card.references.items()
        ],
        "notes": [_stated(stated) for stated in card.notes],
        "reviewed": card.reviewed.isoformat(),
    }


def _paper(card: Card) -> dict[str, object]:
    """Of the reference that introduces the model."""
    intro = card.introduction
    told = {name: getattr(intro, name) for name in ("title", "year", "venue", "arxiv", "doi")}
    return {**told, "authors": list(intro.authors), "code_url": intro.code}


def _claim(judged: Judged) -> dict[str, object]:
    claim = judged.claim
    revision = claim.corrected or claim.outdated
    return {
        "text": claim.claim,
        "because": claim.because,
        "verdict": judged.verdict.value,
        "findings": {"published": judged.published, "independent": judged.independent, "run": _told(judged.run)},
        "reported": _together(judged.reported),
        "shown": _together(judged.shown),
        "cannot_show": claim.cannot_show,
        "stated": _place(claim.source) if claim.source else None,
        "revision": {"reason": revision.reason, **_place(revision.source)} if revision else None,
    }


def _told(run: Outcome) -> str:
    """Of a run, that there is nothing means that it was not tested."""
    return "not tested" if run is Outcome.NONE else run.value


HOLDS = {Outcome.SUPPORTS: True, Outcome.CONTRADICTS: False}
"""All else neither holds nor fails."""


def _together(findings: tuple[Finding, ...]) -> dict[str, object] | None:
    """Several assertions as one: they hold together or not at all; each is kept under `all`."""
    if not findings:
        return None
    each = [_finding(finding) for finding in findings]
    assertion = " and ".join(finding.assertion for finding in findings)
    return {**each[0], "assertion": assertion, "holds": HOLDS.get(joined(findings)), "all": each}


def _finding(finding: Finding) -> dict[str, object]:
    told: dict[str, object] = {
        "assertion": finding.assertion, "outcome": finding.outcome, "holds": HOLDS.get(finding.outcome),
        "remark": finding.remark,
    }  # fmt: skip
    if finding.observed:
        return told | {"observed": dataclasses.asdict(finding.observed)}
    return told | {"source": finding.source, "where": finding.where, "independent": finding.independent}


def _variant(card: Card, key: str, knowledge: Knowledge) -> dict[str, object]:
    variant = card.variants[key]
    counted = knowledge.counted(variant)
    sizes = {metric: own_size(knowledge.library, card.slug, key, metric) for metric in ("parameters", "macs")}
    return {
        "id": key,
        "name": variant.name,
        "params_m": _cost(sizes["parameters"], counted.parameters if counted else None, 1e6),
        "macs_g": {
            **_cost(sizes["macs"], counted.macs if counted else None, 1e9),
            "input": counted.input if counted else None,
        },
        "difference": variant.count.differs if variant.count else None,
        "metrics": [
            _metric(number, knowledge)
            for number in index(knowledge.library)[card.slug][key]
            if number.metric not in SIZE_METRICS
        ],
        "latency": [dataclasses.asdict(timed) for timed in knowledge.latency(variant)],
    }


def _system(system: System, numbers: Sequence[Published], knowledge: Knowledge) -> dict[str, object]:
    """A system with its cost; every figure in it is of it, or of one that differs in nothing that the figure depends on."""
    costs = {metric: cost(knowledge, numbers[0], metric) for metric in SIZES}
    quality = [number for number in numbers if knowledge.library.vocabulary.metric(number.metric).kind == "quality"]
    return {
        "id": system.id, "variant": system.variant, "framework": system.framework, "input": system.input,
        "training": dict(zip(TRAINING, system.training, strict=True)),
        "params_m": _system_cost(costs["parameters"], 1e6), "macs_g": _system_cost(costs["macs"], 1e9),
        "metrics": [_metric(number, knowledge) for number in quality],
        "latency": [*(_metric(each, knowledge) for each in times(knowledge, numbers[0])),
                    *(dataclasses.asdict(timed) for timed in measured_times(knowledge, system))],
    }  # fmt: skip


def _system_cost(found: Cost | None, unit: float) -> dict[str, object] | None:
    return (
        None if found is None else {"value": round(found.value / unit, 6), "counted": found.counted, "of": found.of.id}
    )


def _anatomy(slug: str, record: Anatomy | None) -> dict[str, object] | None:
    if record is None:
        return None
    return {**record, "figure": {scheme: f"figures/anatomy/{slug}.{scheme}.svg" for scheme in ("light", "dark")}}


def _sweep(measured: Measured) -> dict[str, object]:
    return {
        "name": measured.sweep.name, "build": measured.sweep.build, "axis": measured.sweep.axis,
        "x": [point.x for point in measured.points],
        **{what: list(costs) for what, costs in measured.costs.items()},
        "exponents": {what: measured.exponent(what) for what in LABELS},
    }  # fmt: skip


def _cost(reported: Published | None, counted: float | None, unit: float) -> dict[str, object]:
    return {
        "reported": round(reported.quantity.value / unit, 6) if reported else None,
        "counted": round(counted / unit, 6) if counted else None,
        "source": reported.source if reported else None,
        "where": reported.where if reported else None,
    }


def _metric(number: Published, knowledge: Knowledge) -> dict[str, object]:
    conditions = dict(number.given)
    return {
        "dataset": conditions.pop("dataset", None),
        "split": conditions.pop("split", None),
        "metric": number.metric,
        "value": number.quantity.value,
        "unit": knowledge.library.vocabulary.metric(number.metric).unit,
        "conditions": conditions,
        "source": number.source,
        "where": number.where,
    }


def _example(card: Card, knowledge: Knowledge) -> dict[str, object] | None:
    run = knowledge.run(card.slug)
    if run is None:
        return None
    record = run.record
    kept = ("mean", "std", "values", "unit", "meaning")
    folder = f"figures/{card.slug}/"
    return {
        "script": f"examples/{card.slug}.py",
        "page": f"examples/{card.slug}/",
        "notebook": f"examples/{card.slug}.ipynb",
        "device": record.device if record else None,
        "preset": record.preset if record else None,
        "seconds": record.seconds if record else None,
        "seeds": list(record.seeds) if record else [],
        "results": {name: {key: getattr(result, key) for key in kept} for name, result in run.results.items()},
        "figures": [
            {
                "name": figure.name, "caption": figure.caption, "alt": figure.alt,
                **{scheme: folder + getattr(figure, scheme).rpartition("/")[2] for scheme in ("light", "dark")},
            }
            for figure in (record.figures if record else ())
        ],
        "status": run.status if run.status in ("ok", "failed") else "not run",
    }  # fmt: skip


def _relation(relation: Relation) -> dict[str, object]:
    return relation.model_dump()


def _stated(stated: Stated) -> dict[str, object]:
    return {"text": stated.text, **(_place(stated.source) if stated.source else {})}


def _place(cite: Cite) -> dict[str, str]:
    return {"source": cite.reference, "where": cite.where}
