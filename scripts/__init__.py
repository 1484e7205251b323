"""The build: model cards and example runs in, a static site out; one module per stage.

load (`cards`, `schema`) -> check (`checks`) -> run (`runs`, `execute`, `Snakefile`) and count (`counts`) -> judge
(`numbers`, `evidence`, `knowledge`) -> render (`prose`, `pages`, `exports`) -> write and build (`site`).
"""
