"""A helper that only beta imports."""

VALUES = [1.0, 2.0]
