"""Models from the Hugging Face hub.

Needs the extra ``hf``: ``pip install 'llamacffi[hf]'``.  The settings of ``huggingface_hub`` apply:
``HF_TOKEN``, ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_HUB_DISABLE_PROGRESS_BARS``.
"""

from .model.hub import download

__all__ = ["download"]
