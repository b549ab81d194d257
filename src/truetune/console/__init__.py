"""Everything a person sees in a terminal. Nothing outside this room prints."""
