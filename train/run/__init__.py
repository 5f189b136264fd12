"""A run and its folder: what is written there, where it comes from, and how a run survives being ended."""
