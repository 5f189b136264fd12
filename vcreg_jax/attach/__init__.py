"""Regularizers in a model that was written elsewhere: Flax NNX and Linen, and whether they reach its parameters."""
