"""fgd beside its peers, on every job it exists for: `python -m benchmarks --help`."""
