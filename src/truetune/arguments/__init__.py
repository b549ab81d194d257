"""What the command line takes, by room as the commands themselves; `parse` makes options of its words."""
