"""What a setting should be for this model, these rows and this machine, and why."""
