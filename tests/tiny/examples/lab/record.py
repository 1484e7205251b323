"""Writes a record as the real lab does, without torch."""

import argparse
import json
from pathlib import Path

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="40"><rect width="90" height="40" fill="{}"/></svg>'


def write(slug: str, results: dict[str, list[float]]) -> None:
    """One experiment with one figure, `margin`, and with power if it has a result `control`."""
    parser = argparse.ArgumentParser()
    for name in ("preset", "device", "out"):
        parser.add_argument(f"--{name}", default="")
    options = parser.parse_args()
    out = Path(options.out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for scheme, colour in (("light", "#0068a8"), ("dark", "#4fa8e0")):
        (out / f"figures/margin.{scheme}.svg").write_text(SVG.format(colour))
    seeds = len(next(iter(results.values())))
    power = {"control": "A control shows it.", "result": "control", "above": 0} if "control" in results else None
    record = {
        "schema": 2, "slug": slug, "preset": options.preset, "seeds": list(range(seeds)), "seconds": 0.1,
        "device": {"class": "cpu", "name": "tiny", "threads": 1}, "versions": {"python": "3", "torch": "0"},
        "peak_memory_mb": 1.0, "started": "2026-01-01T00:00:00+00:00", "weights": "random",
        "experiments": [{"name": "main", "question": "Is there a margin?", "data": "none", "parameters": None,
                         "steps": None, "results": sorted(results), "figures": ["margin"], "power": power}],
        "results": {name: {"values": values, "mean": sum(values) / len(values), "std": 0.1, "unit": "px",
                           "meaning": f"The {name}", "exact": False, "experiment": "main"}
                    for name, values in results.items()},
        "figures": [{"name": "margin", "light": "figures/margin.light.svg", "dark": "figures/margin.dark.svg",
                     "caption": "The margin.", "alt": "A coloured bar that stands for the margin.",
                     "experiment": "main", "width": 90, "height": 40}],
    }  # fmt: skip
    (out / "record.json").write_text(json.dumps(record))
