"""Batches: the tokens or embeddings of one call of `Context.decode`."""
