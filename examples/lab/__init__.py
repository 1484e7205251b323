"""Shared plumbing of the examples: settings and records, figures, data, training and metrics.

The idea that a card is about is never in here; it is written in the example, where a reader sees it whole.
Axis glossary of the project: B batch, C channels, H and W height and width, T time, N tokens or queries,
D width (features), K classes, S seeds.
"""
