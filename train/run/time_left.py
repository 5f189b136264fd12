"""How long a whole run still takes: the network that is being trained, and all that come after it."""

import contextlib
import datetime
import statistics
import time
from collections.abc import Iterator


class TimeLeft:
    """Estimates how long a run still takes that trains one network after the other."""

    def __init__(self, networks: int, steps: int):
        self._networks, self._steps = networks, steps  # with the one that is being trained; of each
        self._taken: list[float] = []  # seconds of each finished one, from its first step to its last probe
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Around all that is done for one network."""
        self._began = time.perf_counter()
        yield
        self._taken.append(time.perf_counter() - self._began)
        self._networks -= 1

    def seconds_left(self, steps_left: int, steps_per_second: float) -> float:
        """Until all is done, where the present network still has `steps_left` steps to go.

        What is beside the steps, such as compiling and probes, is known of finished networks alone.
        """
        of_one = max(self._steps / steps_per_second, statistics.fmean(self._taken) if self._taken else 0.0)
        here = of_one - (time.perf_counter() - self._began) if self._taken else 0.0
        return max(steps_left / steps_per_second, here) + (self._networks - 1) * of_one

    def text(self, steps_left: int, steps_per_second: float) -> str:
        """As "0:12:30 left in all", "at least" while no network is finished."""
        left = datetime.timedelta(seconds=round(self.seconds_left(steps_left, steps_per_second)))
        return f"{'' if self._taken else 'at least '}{left} left in all"
