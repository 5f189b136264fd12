"""Table 7 in small: VCReg at four places of a ConvNeXt, pretrained and probed as in table2_small.py.

Paper  ConvNeXt-Atto on ImageNet, e.g. Cars: features 39.6, blocks 48.1, downsampling 40.9, both 48.3 %
Ours   CIFAR-10: 40.19 ± 0.80, 39.93 ± 0.78, 40.10 ± 0.20, 40.10 ± 0.34 % (n = 3), in this order; DTD: 29.75 ± 0.66,
       27.58 ± 0.63, 27.58 ± 1.38, 27.17 ± 1.26 % (commit a7e190d)
Run    as in table2_small.py, then python -m train run table7_small
Cost   20 runs and their probes: about half an hour on one CPU core

Each place has the two candidates that VCReg has in table2_small.py, whose column VCReg is "blocks" here.
"""

from dataclasses import replace

from configs.table2_small import get_config as table2
from configs.table5_small import STRENGTHS
from configs.table7_placement import places
from train.config import Candidate, Experiment


def get_config() -> Experiment:
    """The four placements, each with two points of the paper's grid."""
    at = [places(reg) for reg in STRENGTHS]
    return replace(
        table2(),
        name="table7_small",
        title="Table 7 in small: CIFAR-100 (10,000 images, 300 steps), then other images at 32 px",
        arms={place: tuple(Candidate(sites[place]) for sites in at) for place in at[0]},
    )
