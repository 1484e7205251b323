"""The page /x/ is `x.py` and `templates/x.md.j2`; `registry.py` says which page is made by what."""
