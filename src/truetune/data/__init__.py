"""The path of a row: read, parse, split, render, tokenize, pack, collate."""
