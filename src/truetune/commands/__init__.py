"""The commands: one short function each. Nothing heavy is imported before a command needs it."""
