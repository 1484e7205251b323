"""A card and an example to begin with."""
