"""The one schema: YAML, `key=value`, flags and Python keywords become one Config."""
