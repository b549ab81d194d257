"""`python -m truetune`, as torchrun starts it."""

from truetune.cli import entry

entry()
