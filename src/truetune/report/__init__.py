"""What is written of a data set for people and for other tools."""
