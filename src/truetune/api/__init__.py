"""The Python side: the commands as functions, by room as these, through the same schema as files and flags."""
