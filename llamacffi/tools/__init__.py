"""What works on whole models: quantizing, importance matrices, merging adapters."""
