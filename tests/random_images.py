"""Images of many sizes and contrasts, and torch's random numbers handed on to NumPy code."""

import math

import numpy as np
import torch
from PIL import Image


def random_images(count=100, seed=0, smallest=8, largest=160, mode="RGB"):
    """Noise enlarged by random factors, from flat and two-coloured to full range."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = rng.random((*rng.integers(1, 40, size=2), 3))
        low, high = np.sort(rng.integers(0, 256, size=2)) if index % 4 else (0, 255)
        levels = 2 if index % 10 == 3 else 256
        pixels = low + (high - low) * np.round(coarse * (levels - 1)) / (levels - 1)
        width, height = (int(side) for side in rng.integers(smallest, largest, size=2))
        image = Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        yield image.convert(mode)


class Replay:
    """A NumPy generator that gives what torch drew, in order, and insists on being asked for the same."""

    def __init__(self, monkeypatch):
        self.draws = []
        rand, randint, randperm, uniform = torch.rand, torch.randint, torch.randperm, torch.Tensor.uniform_

        def record(kind, bounds, drawn):
            self.draws.append((kind, bounds, drawn))
            return drawn

        def recorded_randint(*arguments, size=None, **options):
            *bounds, size = (*arguments, size) if size is not None else arguments
            low, high = (0, *bounds)[-2:]
            return record("integers", (low, high), randint(low, high, size, **options))

        monkeypatch.setattr(torch, "rand", lambda *size: record("random", (), rand(*size)))
        monkeypatch.setattr(torch, "randint", recorded_randint)
        monkeypatch.setattr(torch, "randperm", lambda n: record("permutation", (n,), randperm(n)))
        monkeypatch.setattr(
            torch.Tensor,
            "uniform_",
            lambda self_, low, high: record("uniform", (float(low), float(high)), uniform(self_, low, high)),
        )

    def _next(self, kind, bounds):
        drawn_kind, drawn_bounds, drawn = self.draws.pop(0)
        assert drawn_kind == kind
        assert all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(bounds, drawn_bounds, strict=True))
        return drawn.numpy() if drawn.numel() > 1 else drawn.item()

    def random(self, size=None):
        del size
        return self._next("random", ())

    def integers(self, low, high=None, size=None):
        del size
        return self._next("integers", (0, low) if high is None else (low, high))

    def uniform(self, low, high):
        return self._next("uniform", (low, high))

    def permutation(self, n):
        return self._next("permutation", (n,))
