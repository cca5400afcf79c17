"""The benchmark: what fan-out costs in the hub and in its peers, on this machine. `python -m tests.bench`."""
