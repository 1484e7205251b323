"""The card: its form, reading it, its problems, its prose, and the JSON Schema for editors."""
