"""The parts of `llamacffi.sampling`."""
