"""What becomes of a trained model: merged, exported, published and served, each proved to be the same."""
