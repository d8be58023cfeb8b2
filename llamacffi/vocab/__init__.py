"""The vocabulary of a model: its tokens, and text to tokens and back."""
