"""Figure 1: decision boundaries on two moons that one axis alone separates, averaged over ten seeds.

Paper  a picture: VCReg bends the boundary around the moons, usual regularizers do not; no numbers
Ours   three layers, smallest distance of a point to the boundary, and how much more the separating axis counts: without
       regularization 0.126 and 12.5, VCReg (0.64, 0.08) 0.125 and 12.2, VCReg (25, 1) 0.178 and 2.1 (n = 10 seeds);
       spectral decoupling 0.173 and 3.8, batch norm 0.246 and 2.0: docs/results/fig1.md
Run    python -m train run fig1_two_moons
Cost   2 min 51 s on 2 CPU cores, one of them busy with something else

Data, two-layer network and methods are those of the gradient-starvation paper (`train.experiments.two_moons`), which
trains for 1,000 steps. The paper says "a three-layer network" and neither its widths nor alpha and beta nor where VCReg
acts.
The five layers are 128 wide and not the reference's 500, which alone would take as long as all else together.
Assumed: two hidden layers of 128, VCReg on the outputs of all hidden layers; once with a point of the paper's grid of
weights, once with the weights that bent the boundary most of (0.64, 0.08), (5, 1) and (25, 1).
"""

from train.experiments.two_moons import Method, TwoMoons
from vcreg_jax import VCReg


def get_config() -> TwoMoons:
    """The reference's ten methods, then VCReg, on both networks."""
    return TwoMoons(
        name="fig1_two_moons",
        networks={"two layers": (500,), "three layers": (128, 128)},
        methods={
            "no regularization": Method(),
            "weight decay 0.01": Method(weight_decay=0.01),
            "10 times longer": Method(steps=10),
            "Adam, rate 1e-4": Method(rule="adam", learning_rate=1e-4),
            "Adam, rate 3e-3": Method(rule="adam", learning_rate=3e-3),
            "rotated by 45 degrees": Method(rotation=45.0),
            "dropout 0.7": Method(dropout=0.7),
            "batch norm": Method(batch_norm=True),
            "five layers": Method(widths=(128, 128, 128, 128)),
            "spectral decoupling": Method(spectral_decoupling=0.003),
            "VCReg 0.64, 0.08": Method(regularizer=VCReg(alpha=0.64, beta=0.08)),
            "VCReg 25, 1": Method(regularizer=VCReg(alpha=25.0, beta=1.0)),
        },
    )
