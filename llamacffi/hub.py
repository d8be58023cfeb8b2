"""Models from the Hugging Face hub: the public door to `model.hub`."""

from .model.hub import download

__all__ = ["download"]
