"""Hours in minutes: signals, threads, and all that can happen to an object, at random."""
