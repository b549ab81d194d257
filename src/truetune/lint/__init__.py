"""Rules that data is held against, row by row and as a whole."""
