"""What a trained model is worth: losses, answers and tasks, beside its base."""
