"""Answers from a trained model, with training's prompts and stops."""
