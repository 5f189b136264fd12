"""How long things take, measured here or estimated for other devices."""
