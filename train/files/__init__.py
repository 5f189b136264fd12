"""Files whose damage is noticed: they are written with a hash and checked where they are read."""
