"""Other tools' configs and training scripts as a run.yaml: every key is translated, or told with the reason."""
