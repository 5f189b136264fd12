"""Table 7 in small: VCReg at four places of a ConvNeXt, which are columns of the run in table2_small.py.

Paper  ConvNeXt-Atto on ImageNet, e.g. Cars: features 39.6, blocks 48.1, downsampling 40.9, both 48.3 %
Ours   not run
Run    as in table2_small.py; where that is finished, this computes nothing
Cost   that of table2_small.py
"""

from configs.table2_small import get_config as get_config
