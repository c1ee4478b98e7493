"""The parts of `tests/benchmarks/gpu.py`."""
