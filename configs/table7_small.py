"""Table 7 in small: VCReg at four places of a ConvNeXt, pretrained and probed as in table2_small.py.

Paper  ConvNeXt-Atto on ImageNet, e.g. Cars: features 39.6, blocks 48.1, downsampling 40.9, both 48.3 %
Ours   CIFAR-10, with 150 steps and one candidate: 37.29 ± 0.66, 37.30 ± 0.23, 36.86 ± 0.49, 37.82 ± 0.78 % (n = 3),
       in this order
Run    as in table2_small.py, then python -m train run configs/table7_small.py
Cost   20 runs of about a minute on one CPU core

Each place has the two candidates that VCReg has in table2_small.py, whose column VCReg is "blocks" here.
"""

from dataclasses import replace

from configs.table2_small import get_config as table2
from configs.table5_small import STRENGTHS
from configs.table7_placement import places
from train.config import Candidate, Transfer


def get_config() -> Transfer:
    """The four placements, each with two points of the paper's grid."""
    at = [places(reg) for reg in STRENGTHS]
    return replace(
        table2(),
        name="table7_small",
        title="Table 7 in small: CIFAR-100 (10,000 images, 300 steps), then other images at 32 px",
        arms={place: tuple(Candidate(sites[place]) for sites in at) for place in at[0]},
    )
