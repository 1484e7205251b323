"""The cards as other collections of models describe theirs: Hugging Face (`model-index`) and OpenMMLab (metafiles)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence

import yaml

from scripts.cards.schema import Card
from scripts.evidence.knowledge import SIZE_METRICS, Knowledge
from scripts.evidence.published import Published, index, own_size
from scripts.evidence.systems import SIZES, cost, named
from scripts.files import Dear

PIPELINES = {
    "image classification": "image-classification", "object detection": "object-detection",
    "instance segmentation": "image-segmentation", "semantic segmentation": "image-segmentation",
    "panoptic segmentation": "image-segmentation", "promptable segmentation": "mask-generation",
    "medical segmentation": "image-segmentation", "keypoint detection": "keypoint-detection",
    "video classification": "video-classification", "graph learning": "graph-ml",
    "representation learning": "image-feature-extraction",
}  # fmt: skip

HUB_LICENCES = {
    "Apache-2.0": "apache-2.0", "MIT": "mit", "BSD-3-Clause": "bsd-3-clause", "BSD-2-Clause": "bsd-2-clause",
    "AGPL-3.0-only": "agpl-3.0", "GPL-3.0-only": "gpl-3.0", "CC-BY-4.0": "cc-by-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0", "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0",
}  # fmt: skip


def of_card(card: Card, knowledge: Knowledge) -> dict[str, Dear]:
    """Both descriptions of a model, by path below `docs/`."""
    return {
        f"downloads/huggingface/{card.slug}.yml": _yaml(hub_metadata(card, knowledge)),
        f"downloads/openmmlab/{card.slug}/metafile.yml": _yaml(metafile(card, knowledge)),
    }


class _Dumper(yaml.CSafeDumper):
    """Writes a value that occurs twice twice, where YAML would name it and refer to it."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _yaml(value: object) -> Dear:
    """A value as YAML, which takes PyYAML a hundred times as long as JSON."""

    def text() -> str:
        return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6))

    return Dear(f"PyYAML {yaml.__version__}\n{json.dumps(value)}", text)


def hub_metadata(card: Card, knowledge: Knowledge) -> dict[str, object]:
    """`license`, `tags`, `pipeline_tag`, `model_name` and `model-index` with one result per published number."""
    pipelines = [PIPELINES[task] for task in card.tasks if task in PIPELINES]
    pipeline = pipelines[0] if pipelines else "other"
    variants = [(key, _quality(card, key, knowledge)) for key in card.variants]
    entries = [
        {"name": card.variants[key].name, "results": [_hub_result(n, card, pipeline, knowledge) for n in numbers]}
        for key, numbers in variants
        if numbers
    ]
    found: dict[str, object] = _hub_licence(card)
    found |= {"pipeline_tag": pipelines[0]} if pipelines else {}
    found |= {"tags": ["computer-vision", *sorted({task.replace(" ", "-") for task in card.tasks})]}
    return found | ({"model-index": entries} if entries else {})


def _hub_licence(card: Card) -> dict[str, object]:
    """The licence of the weights, or of the code where no weights were published; the Hub knows few of them by name."""
    spdx = card.licences.weights if card.licences.weights != "none" else card.licences.code
    if spdx in HUB_LICENCES:
        return {"license": HUB_LICENCES[spdx]}
    return {"license": "other", "license_name": spdx.removeprefix("LicenseRef-").lower()}


def _quality(card: Card, variant: str, knowledge: Knowledge) -> list[Published]:
    """The figures of a variant that were measured on a dataset."""
    numbers = index(knowledge.library)[card.slug][variant]
    return [n for n in numbers if n.conditions.dataset and n.metric not in SIZE_METRICS]


def _hub_result(number: Published, card: Card, pipeline: str, knowledge: Knowledge) -> dict[str, object]:
    conditions = dict(number.given)
    dataset, split = conditions.pop("dataset"), conditions.pop("split", None)
    reference = card.references[number.source]
    label = knowledge.library.vocabulary.metric(number.metric).label
    metric = {"type": number.metric.lower(), "name": label, "value": number.quantity.value}
    return {
        "task": {"type": pipeline, "name": card.tasks[0]},
        "dataset": {"name": dataset, "type": dataset.lower().replace(" ", "-"), **({"split": split} if split else {})},
        "metrics": [metric | ({"args": conditions} if conditions else {})],
        "source": {"name": f"{reference.title}: {number.where}", "url": reference.addresses[0][1]},
    }


def metafile(card: Card, knowledge: Knowledge) -> dict[str, object]:
    """A collection with its models, as the `metafile.yml` of OpenMMLab's repositories has them."""
    intro = card.introduction
    paper = {"URL": intro.addresses[0][1], "Title": intro.title}
    collection: dict[str, object] = {"Name": card.name, "Paper": paper}
    collection |= {"Code": {"URL": intro.code}} if intro.code else {}
    return {"Collections": [collection], "Models": [*_metafile_models(card, knowledge)]}


def _metafile_models(card: Card, knowledge: Knowledge) -> Iterator[dict[str, object]]:
    """One model for each system, since a configuration of theirs is one: what it costs, and what it reaches.

    A variant without figures on data is there with what it costs by itself.
    """
    for key, variant in card.variants.items():
        found: dict[tuple[str | None, str | None], list[Published]] = {}
        for number in _quality(card, key, knowledge):
            found.setdefault((number.conditions.framework, number.conditions.input), []).append(number)
        frameworks = Counter(framework for framework, _ in found)
        for (framework, at), numbers in found.items():
            name = named(variant.name, framework)
            name = f"{name} at {at or 'an input not given'}" if frameworks[framework] > 1 else name
            costs = [cost(knowledge, numbers[0], metric) for metric in SIZES]
            results = {"Results": _metafile_results(card, numbers, knowledge)}
            yield _metafile_model(name, card, [size.value if size else None for size in costs]) | results
        if not found:
            sizes = [own_size(knowledge.library, card.slug, key, metric) for metric in SIZES]
            yield _metafile_model(variant.name, card, [size.quantity.value if size else None for size in sizes])


def _metafile_model(name: str, card: Card, sizes: Sequence[float | None]) -> dict[str, object]:
    metadata = zip(("Parameters", "FLOPs"), sizes, strict=True)  # their FLOPs are MACs
    known = {key: int(value) for key, value in metadata if value}
    return {"Name": name, "In Collection": card.name, **({"Metadata": known} if known else {})}


def _metafile_results(card: Card, numbers: list[Published], knowledge: Knowledge) -> list[dict[str, object]]:
    """One result per table and dataset."""
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for number in numbers:
        groups.setdefault((number.table, number.on), {})[knowledge.library.vocabulary.metric(number.metric).label] = (
            number.quantity.value
        )
    task = card.tasks[0].title()
    return [{"Task": task, "Dataset": dataset, "Metrics": metrics} for (_, dataset), metrics in groups.items()]
