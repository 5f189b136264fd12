"""This implementation and PyTorch, side by side, number by number."""
