import numpy as np

from train.augment import shifted


def test_shifts_are_uniform_and_zeros_move_in():
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    expected = {}
    for down in (-2, -1, 0, 1, 2):
        for right in (-2, -1, 0, 1, 2):
            moved = np.zeros_like(image)
            for row in range(3):
                for column in range(4):
                    if 0 <= row + down < 3 and 0 <= column + right < 4:
                        moved[row + down, column + right] = image[row, column]
            expected[moved.tobytes()] = 0
    assert len(expected) == 25
    rng = np.random.default_rng(0)
    for _ in range(5000):
        expected[shifted(image, rng, 2).tobytes()] += 1  # KeyError: not a shift
    counts = np.array(list(expected.values()))
    # 200 expected each; 25 cells: chi-squared with 24 degrees of freedom stays below 51 in 999 of 1,000 cases.
    assert ((counts - 200) ** 2 / 200).sum() < 51
