"""Benchmarks: what Python adds to llama.cpp.  Run with ``make bench`` or ``python -m bench``."""
