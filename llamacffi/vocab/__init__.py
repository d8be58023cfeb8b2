"""The vocabulary of a model: its tokens, tokenization and detokenization."""
