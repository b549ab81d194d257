"""Tokenizers, models and adapters, loaded for the hardware that is there."""
