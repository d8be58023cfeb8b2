"""Load, check, describe, build and save models."""
