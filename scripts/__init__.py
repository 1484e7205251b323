"""The build: model cards and example runs in, a static site out; one room per stage.

`cards` -> `runs` and `architectures` -> `evidence` -> `checkpoints` -> `exports` and `pages` -> `site`. A room imports from those
before it, never from those after it.
"""
