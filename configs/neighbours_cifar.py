"""The other regularizers of features beside VCReg: CIFAR-10 and CIFAR-100, each at its best of four strengths.

Paper  has DeCov and WLD-Reg beside VCReg in Table 2, and none of the others
Ours   CIFAR-10: each is best at the weakest strength tried; see docs/results/neighbours.md. The other points: not run
Run    python -m train prepare cifar10 --from FOLDER; python -m train prepare cifar100 --from FOLDER
       python -m train run neighbours_cifar --point cifar10; --point "cifar10 weaker"; --point cifar100
Cost   one CPU core: about 1.2 minutes for 600 steps

"cifar10": trained on animal or vehicle, probed on the ten classes. Training, probes, seeds and number of points are
those of strength_cifar10.py, whose rows of VCReg and of none at its best of four rates stand in the same table. Here
none is only at that rate, to show that it is the same training. "cifar100": trained on the 20 superclasses, probed on
the 100 classes; 900 steps, 300 in the search. Nothing of it was run before, so VCReg and four rates of none are in it.
The strengths are those of neighbours_digits.py. A regularizer goes where its own paper puts it. All of them were best
at their weakest strength on CIFAR-10. "cifar10 weaker" tries that one and a tenth, a hundredth, a thousandth of it.
"""

from dataclasses import replace

from configs import neighbours_digits, recipes, strength_cifar10
from train.config import Cosine
from train.experiments.grid import Grid


def get_config() -> Grid:
    """The neighbours on CIFAR-10."""
    return sweep()["cifar10"]


def sweep() -> dict[str, Grid]:
    """Both data sets, and weaker strengths on one of them."""
    return {"cifar10": cifar10(), "cifar10 weaker": cifar10_weaker(), "cifar100": cifar100()}


def cifar10() -> Grid:
    """The short training of the map, with other regularizers in place of VCReg."""
    return replace(
        strength_cifar10.get_config(),
        name="neighbours_cifar10",
        title="CIFAR-10, 1500 steps: animal or vehicle, then the ten classes; VCReg's neighbours",
        arms=neighbours_digits.at_their_own_places(),
        baseline_learning_rates=(strength_cifar10.RATE,),
    )


def cifar10_weaker() -> Grid:
    """The weakest strength of each, and a tenth, a hundredth and a thousandth of it."""
    grid = cifar10()
    weaker = {
        name: neighbours_digits.four(own.sites, *(own.alphas[0] / 10**power for power in range(3, -1, -1)))
        for name, own in grid.arms.items()
    }
    return replace(grid, name="neighbours_cifar10_weaker", title=f"{grid.title}, weaker", arms=weaker)


def cifar100() -> Grid:
    """CIFAR-10's training, shorter, on CIFAR-100: VCReg and its neighbours."""
    map_of_strengths = strength_cifar10.get_config()
    data = replace(
        recipes.CIFAR100_SUPERCLASSES,
        augment=map_of_strengths.train.data.augment,
        evaluation=map_of_strengths.train.data.evaluation,
        train_split="train[:45000]",
        validation_split="train[45000:]",
        test_split="test",
    )
    train = replace(map_of_strengths.train, data=data)

    def shortened(steps: int):
        schedule = Cosine(strength_cifar10.RATE, warmup_steps=steps // 10)
        return replace(train, steps=steps, eval_every=steps, optimizer=replace(train.optimizer, schedule=schedule))

    return replace(
        map_of_strengths,
        name="neighbours_cifar100",
        title="CIFAR-100, 900 steps: 20 superclasses, then 100 classes; VCReg and its neighbours",
        train=shortened(900),
        search=shortened(300),
        arms=map_of_strengths.arms | neighbours_digits.at_their_own_places(),
    )
