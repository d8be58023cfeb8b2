"""Tools for whole models: quantizing, importance matrices, merging adapters."""
