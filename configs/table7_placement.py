"""Table 7: VCReg at four places of a ConvNeXt-Atto, trained on ImageNet for 90 epochs and probed on six data sets.

Paper  in `PAPER` below; e.g. Cars: features 39.6, blocks 48.1, downsampling 40.9, both 48.3 %
Ours   not run: it needs ImageNet and accelerators; table7_small.py is what a CPU can do
Run    python -m train prepare imagenet --from FOLDER, and likewise the sets that configs/probes.py names;
       python -m train run table7_placement; python -m train report table7
Cost   20 ConvNeXt-Attos of 90 epochs

The paper's two learning rates are the two candidates of every place. It searched alpha and beta at each, and does not
tell what it found; here they are 0.64 and 0.08 everywhere.
"""

from configs import probes, recipes
from train.config import Candidate, Experiment
from vcreg_jax import Sites, VCReg

PAPER = {
    "features": (63.2, 39.6, 55.9, 89.1, 85.3, 65.1),
    "blocks": (66.8, 48.1, 60.4, 91.1, 86.4, 66.4),
    "downsampling": (64.0, 40.9, 56.5, 89.4, 85.9, 65.1),
    "blocks and downsampling": (66.7, 48.3, 59.6, 90.6, 85.6, 66.1),
}


def places(reg: VCReg) -> dict[str, Sites]:
    """The four placements of Appendix A."""
    return {
        "features": Sites(features=reg),
        "blocks": Sites(block=reg),
        "downsampling": Sites(downsample=reg),
        "blocks and downsampling": Sites(block=reg, downsample=reg),
    }


def get_config() -> Experiment:
    """The four placements, each with two learning rates."""
    return Experiment(
        name="table7_placement",
        title="Table 7: where VCReg is applied, ConvNeXt-Atto, ImageNet, then six data sets",
        train=recipes.convnext_atto(),
        arms={
            place: tuple(Candidate(sites, peak_learning_rate=rate) for rate in (0.016, 0.008))
            for place, sites in places(VCReg(alpha=0.64, beta=0.08)).items()
        },
        targets=probes.SIX,
        seeds=(0, 1, 2),
        tuning_seed=100,
        paper={place: dict(zip(probes.SIX, values, strict=True)) for place, values in PAPER.items()},
    )


def sweep() -> dict[str, Experiment]:
    """The table has one run."""
    return {"convnext_atto": get_config()}
