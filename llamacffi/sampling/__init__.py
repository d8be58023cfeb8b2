"""Choosing tokens: samplers, grammars, candidates and the chain that applies them."""
