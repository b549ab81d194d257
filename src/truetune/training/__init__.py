"""The engine: TRL's SFTTrainer, fed with our tokens and labels."""
