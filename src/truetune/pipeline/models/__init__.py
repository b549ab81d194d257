"""What models are here, what each needs, and what is unusual about one; from their files alone."""
