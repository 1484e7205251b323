"""How fast the build is and how it grows, beside its peers: `python -m scripts.benchmarks --help`."""
