"""Runs afterwards: the page of one, several side by side, and sweeps."""
