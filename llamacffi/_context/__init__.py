"""The parts of `llamacffi.context`, of its memory and of its state."""
