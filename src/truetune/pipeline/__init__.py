"""One module a verb; here, and only here, Config meets the rooms that do the work."""
