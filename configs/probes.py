"""The data sets on which the paper's tables probe frozen features, each with its protocol: split, size, metric.

Splits and metrics are those of BYOL, Table 10 (arXiv 2006.07733), which follow Kornblith et al. 2019; the images come
as SimCLR, Appendix B.8.1, and the paper's Appendix C.1 have them: 224 pixels on the shorter side, bicubic, cut to the
square in the centre, not augmented. The paper names neither the metric nor the images held out.

Places205 and iNaturalist 2018 are probed by the settings of Barlow Twins, Appendix C.1 (arXiv 2103.03230): 14 and 84
epochs, rate 0.01, divided by ten at two equally spaced points, weight decay 5e-4; the batch of 256 is VISSL's.
Departs from it: features are computed once, from centre crops, where Barlow Twins crops and flips anew in every epoch;
no Nesterov step; validation images, which choose nothing here, are the test images. ImageNet's probe, of networks that
learned without labels, is that of barlowtwins/evaluate.py with the same departures: 100 epochs, rate 0.3, cosine.
"""

from dataclasses import replace

from configs.recipes import IMAGENET
from train.augment import EvalTransformConfig
from train.config import SGD, AdamW, GradientProbeConfig, ProbeConfig, Target

PAPER = ProbeConfig(label="label")  # 45 strengths in 1e-5..1e5
KORNBLITH = replace(PAPER, protocol="Kornblith et al.", l2_low=1e-6)
SYNCLR = replace(KORNBLITH, protocol="SynCLR", standardize=True, max_iterations=500, warm_start=False)

SUBCLASSES = GradientProbeConfig(
    "label", AdamW(weight_decay=0.05), (0.016,), epochs=100, protocol="VCReg, Appendix C.2", batch_size=256
)  # whether 0.016 is for a batch of 256 or of 4096 the paper does not say; 0.001 would be the other reading
PLACES205 = GradientProbeConfig(
    "label", SGD(weight_decay=5e-4), (0.01,), epochs=14, protocol="Barlow Twins, Places205", drops=2
)
INATURALIST = replace(PLACES205, epochs=84, protocol="Barlow Twins, iNaturalist 2018")
IMAGENET_LINEAR = GradientProbeConfig(
    "label", SGD(weight_decay=1e-6), (0.3,), epochs=100, protocol="Barlow Twins, ImageNet"
)


def _images(name: str, **changes: str) -> Target:
    transform = EvalTransformConfig(resize=224, crop=224, interpolation="bicubic")
    return Target(PAPER, replace(IMAGENET, **{"name": name, "evaluation": transform, "test_split": "test", **changes}))


MEAN_PER_CLASS = replace(PAPER, metric="mean_per_class")
SIX = {
    "Food-101": replace(_images("food101"), held_out=0.1, images=(68_175, 7_575, 25_250)),
    "Cars": replace(_images("cars196"), held_out=1_650 / 8_144, images=(6_494, 1_650, 8_041)),
    "Aircraft": replace(_images("fgvc_aircraft"), probe=MEAN_PER_CLASS, images=(3_334, 3_333, 3_333)),
    "Pets": replace(_images("oxford_iiit_pet"), probe=MEAN_PER_CLASS, held_out=20, images=(2_940, 740, 3_669)),
    "Flowers": replace(_images("oxford_flowers102"), probe=MEAN_PER_CLASS, images=(1_020, 1_020, 6_149)),
    "DTD": replace(_images("dtd"), images=(1_880, 1_880, 1_880)),
}
LARGE = {
    "iNat18": replace(_images("i_naturalist2018", test_split="validation"), probe=INATURALIST),
    "Places": replace(_images("places205", test_split="validation"), probe=PLACES205),
}
ALL = {"ImageNet": Target(IMAGENET_LINEAR, IMAGENET), **LARGE, **SIX}
