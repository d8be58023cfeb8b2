"""Generating text: the loop, its stop conditions and its results."""
