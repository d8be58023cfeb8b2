"""The parts of `llamacffi.batch`."""
