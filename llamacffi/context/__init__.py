"""Contexts: computing, their memory, their outputs and their state."""
