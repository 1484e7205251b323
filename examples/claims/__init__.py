"""The experiments behind the claims of each card: `python examples/<slug>.py --claims` runs them after the cells."""
