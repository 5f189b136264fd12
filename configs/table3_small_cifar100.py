"""Table 3 in small: CIFAR-100-LT with imbalance 100 at 16 pixels, ResNet-32, a short schedule.

Paper  ResNet-32, 32 pixels, 100 epochs, test: 37.4 -> 40.4 %
Ours   6.76 ± 0.66 -> 8.39 ± 0.45 % (n = 3; chosen: learning rate 0.016; 0.008, alpha 0.16, beta 0.16)
Run    python -m train prepare cifar100 --from FOLDER; python -m train run table3_small_cifar100
Cost   10 runs of 96 steps, then 6 of 320, of 64 images: about ten minutes on one CPU core

A size at which one CPU core does both data sets in an hour: images shrunk to 16 pixels, 1.9 epochs on all training
images and 0.6 in the search, of whose grid a fifth is tried. The rest is Appendix C.3's.
"""

from dataclasses import replace

from configs.table3_cifar100_lt import get_config as at_paper_scale
from configs.table3_small_cifar10 import get_config as cifar10
from configs.table3_small_cifar10 import shortened
from train.experiments.grid import Grid


def get_config() -> Grid:
    """As for CIFAR-10-LT."""
    config = at_paper_scale()
    return replace(
        cifar10(),
        name="table3_small_cifar100",
        title="Table 3 in small: CIFAR-100-LT at 16 pixels, ResNet-32, 320 steps of 64 images",
        train=shortened(config.train, 320),
        search=shortened(config.search, 96),
        paper=config.paper,
    )
