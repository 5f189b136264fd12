import io

import numpy as np
from PIL import Image

from train.data import throughput


def test_both_ways_are_timed_over_real_photographs_and_the_ratio_is_the_median_of_rounds():
    found = throughput.measure(rounds=3, batches=1, batch_size=16)
    ratios = np.array(found.through_pipeline) / np.array(found.bare)
    np.testing.assert_allclose(found.ratio, np.median(ratios))
    assert 0.3 < found.ratio < 1.3  # faster than the same work in a bare loop would mean that work was not timed
    assert f"ratio {found.ratio:.3f}" in str(found)
    (file,) = throughput.photographs(1)
    assert Image.open(io.BytesIO(file)).size == (500, 375)
