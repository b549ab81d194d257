"""`truetune report --serve`: a small web server that reads the runs of some folders, and nothing else."""
