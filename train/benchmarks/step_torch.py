"""PyTorch's half of the timing table: torchvision's networks, eager and compiled, in PyTorch's own best form.

Maps are channels last in memory, bfloat16 is autocast, float32 products may use TF32 as JAX's do on a GPU, AdamW is
fused, and the compiled function holds the whole loss. The step does what ours does, less the metrics, which are the
training accuracy and the gradient's norm.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

import vcreg_jax as vc
from train.benchmarks.programs import AGAIN, NORMALIZE, OPTIMIZER, PHASES, SEED, Settings, batch_norm, random_batch
from train.benchmarks.timing import LATE, NEVER, Deadline, Row, interleave
from train.interop.crosscheck.torch_networks import tv

LIBRARIES = ("PyTorch eager", "PyTorch compiled")
Name = tuple[str, str]  # library and column


@dataclass(frozen=True)
class Network:
    """A torchvision network, and the names of its residual blocks, each a child of an `nn.Sequential`."""

    create: Callable[..., nn.Module]
    blocks: str


NETWORKS = {
    "vit_b_32": Network(tv.vit_b_32, r"encoder\.layers\.encoder_layer_\d+"),
    "convnext_tiny": Network(tv.convnext_tiny, r"features\.[1357]\.\d+"),
    "resnet50": Network(tv.resnet50, r"layer\d\.\d+"),
    "convnext_digits": Network(  # to try the benchmark on: torchvision's stem is coarser than ours
        partial(tv.ConvNeXt, [tv.convnext.CNBlockConfig(32, 64, 2), tv.convnext.CNBlockConfig(64, None, 2)]),
        r"features\.[13]\.\d+",
    ),
}


class Algorithm1(torch.autograd.Function):
    """`h`, features last, and in the backward pass the paper's Algorithm 1 on its rows, centred as it expects them.

    The covariance term has Algorithm 1's scale, n - 1 times that of Eq. 4's gradient. `reg` gives alpha, beta and eps,
    and with `scope=k` the leading axis is cut into k groups of their own; products take operands of `dtype`.
    """

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, reg: vc.VCReg, dtype: torch.dtype) -> torch.Tensor:  # pyright: ignore
        """`h` itself."""
        ctx.save_for_backward(h)
        ctx.reg, ctx.dtype = reg, dtype
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, incoming: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # pyright: ignore
        """The incoming gradient and the regularizer's."""
        (h,) = ctx.saved_tensors
        groups = 1 if ctx.reg.scope == "global" else ctx.reg.scope
        rows = h.reshape(groups, -1, h.shape[-1])
        x = (rows - rows.mean(dim=1, keepdim=True)).to(ctx.dtype)
        n, d = x.shape[1:]
        covariance = torch.bmm(x.mT, x).to(incoming.dtype) / (n - 1)
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        of_std = functional.threshold(torch.rsqrt(diagonal + ctx.reg.eps), 1.0, 0.0)
        off_diagonal = covariance - torch.diag_embed(diagonal)
        of_covariance = torch.bmm(x, off_diagonal.to(ctx.dtype))
        push = 4 * ctx.reg.beta / (d * (d - 1)) * of_covariance - ctx.reg.alpha / (d * (n - 1)) * of_std[:, None] * x
        return (incoming + (push / groups).reshape(h.shape)).to(h.dtype), None, None


class Site(nn.Module):
    """A regularizer of the timing table after a block; `penalty` is what it adds to the loss, where it does."""

    def __init__(self, regularizer: Any, dim: int, dtype: torch.dtype):
        super().__init__()
        self.regularizer, self.dtype = regularizer, dtype
        self.penalty: torch.Tensor | None = None
        self.norm = nn.BatchNorm1d(dim) if regularizer is batch_norm else None

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """`h`, or normalized features where the column is a batch norm."""
        features = h.movedim(1, -1) if h.ndim == 4 else h
        if self.norm is not None:
            features = self.norm(features.flatten(end_dim=-2)).reshape(features.shape)
        elif isinstance(self.regularizer, vc.explicit):
            self.penalty = penalty(features, self.regularizer.reg)
        else:
            features = Algorithm1.apply(features, self.regularizer, self.dtype)
        assert isinstance(features, torch.Tensor)
        return features.movedim(-1, 1) if h.ndim == 4 else features


def penalty(h: torch.Tensor, reg: Any) -> torch.Tensor:
    """Eqs. 2 to 4 over all rows, for autograd."""
    d = h.shape[-1]
    covariance = torch.cov(h.flatten(end_dim=-2).T)
    diagonal = covariance.diagonal()
    off_diagonal = covariance.square().sum() - diagonal.square().sum()
    return reg.alpha * torch.relu(1 - torch.sqrt(diagonal + reg.eps)).mean() + reg.beta * off_diagonal / (d * (d - 1))


def with_sites(net: nn.Module, network: Network, regularizer: Any, dtype: torch.dtype, image_size: int) -> nn.Module:
    """`net` with a `Site` behind every block, unless the regularizer is the identity."""
    if regularizer is vc.identity:
        return net
    names = [name for name, _ in net.named_modules() if re.fullmatch(network.blocks, name)]
    dims = {}
    for name in names:
        block = net.get_submodule(name)
        block.register_forward_hook(partial(_note_dim, dims, name))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, image_size, image_size))
    for name in names:
        parent, _, child = name.rpartition(".")
        block = net.get_submodule(name)
        block._forward_hooks.clear()
        setattr(net.get_submodule(parent), child, nn.Sequential(block, Site(regularizer, dims[name], dtype)))
    return net


def _note_dim(dims: dict[str, int], name: str, _block: nn.Module, _inputs: Any, h: torch.Tensor) -> None:
    dims[name] = h.shape[1] if h.ndim == 4 else h.shape[-1]


def loss_of(net: nn.Module, dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """`(images, labels) -> loss`: bytes normalized on the device, the mean cross-entropy, and the sites' penalties."""
    device = next(net.parameters()).device
    mean, std = (torch.tensor(values, device=device).reshape(1, 3, 1, 1) for values in (NORMALIZE.mean, NORMALIZE.std))
    sites = [module for module in net.modules() if isinstance(module, Site)]

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = net((images.float() / 255 - mean) / std)
            total = functional.cross_entropy(logits, labels)
        for site in sites:
            total = total if site.penalty is None else total + site.penalty
        return total

    return loss


def measure(settings: Settings, model: str, dtype: str, end: Deadline = NEVER) -> list[Row]:
    """All columns of one network in one precision, eager and compiled interleaved, every phase on its own."""
    return list(chain.from_iterable(measure_phases(settings, model, dtype, LIBRARIES, settings.phases, end)))


def measure_phases(
    settings: Settings, model: str, dtype: str, libraries: Sequence[str], phases: Sequence[str], end: Deadline = NEVER
) -> Iterator[list[Row]]:
    """The rows of one phase after the other, each as soon as it is timed; what is not prepared in time says so."""
    torch.set_float32_matmul_precision("high")
    here_only = ("barrier", "VCReg, sampled")
    names = [(library, column) for library in libraries for column in settings.columns if column not in here_only]
    programs, failed, took = _prepare(settings, model, dtype, names, end.part(0.8))
    for index, phase in enumerate(phases):
        if phase == PHASES[1]:
            programs = {name: replace(program, optimizer=adamw(program.net)) for name, program in programs.items()}
        memory = {name: program.peak_memory() for name, program in programs.items()}
        calls = {name: program.run for name, program in programs.items()}
        for library in libraries:
            if (library, "identity") in calls:
                calls[library, AGAIN] = calls[library, "identity"]
        rows = []
        part = end.part(1 / (len(phases) - index))
        for (library, column), seconds in interleave(calls, settings.rounds, part).items() if calls else ():
            same = library, "identity" if column == AGAIN else column
            rows.append(Row(library, model, dtype, phase, column, seconds, memory[same], "", *took[same]))
        yield rows + [Row(name[0], model, dtype, phase, name[1], not_run=why) for name, why in failed.items()]


def _prepare(
    settings: Settings, model: str, dtype: str, names: Sequence[Name], by: Deadline
) -> tuple[dict[Name, "Program"], dict[Name, str], dict[Name, tuple[float, float]]]:
    """The programs, each called once; why the others are not there; the seconds that preparing and calling took.

    None is begun that would not be ready in time if it took as long as the longest of its library before.
    """
    programs, failed, took = {}, {}, {}
    for name in names:
        longest = max((sum(took[other]) for other in took if other[0] == name[0]), default=0.0)
        if by.left <= longest:
            failed[name] = LATE
            continue
        start = time.perf_counter()
        try:
            programs[name] = make_program(settings, NETWORKS[model], dtype, *name)
            middle = time.perf_counter()
            programs[name].run()
        except RuntimeError as error:  # no compiler, or it does not fit
            programs.pop(name, None)
            failed[name] = str(error).strip().splitlines()[0]
            continue
        took[name] = middle - start, time.perf_counter() - middle
        print(f"  {name[0]}, {model}, {dtype}, {name[1]}: ready in {sum(took[name]):.1f} s", flush=True)
    for program in programs.values():
        program.net.zero_grad(set_to_none=True)
    return programs, failed, took


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the training step, in PyTorch's fastest form."""
    return torch.optim.AdamW(
        net.parameters(), OPTIMIZER.schedule.peak_learning_rate, weight_decay=OPTIMIZER.rule.weight_decay, fused=True
    )


@dataclass(frozen=True)
class Program:
    """What a call of one column needs; without an optimizer, forward and backward alone."""

    net: nn.Module
    loss: Callable[..., torch.Tensor]
    images: torch.Tensor
    labels: torch.Tensor
    optimizer: torch.optim.Optimizer | None = None

    def run(self) -> None:
        """Once, and waits for it."""
        self.net.zero_grad(set_to_none=True)
        self.loss(self.images, self.labels).backward()
        if self.optimizer is not None:
            self.optimizer.step()
        if self.images.is_cuda:
            torch.cuda.synchronize()

    def peak_memory(self) -> int | None:
        """Bytes on the GPU at the peak of a call, with the network, the optimizer and the batch; None on a CPU."""
        if not self.images.is_cuda:
            return None
        self.run()
        self.net.zero_grad(set_to_none=True)
        moments = (
            [] if self.optimizer is None else [v for state in self.optimizer.state.values() for v in state.values()]
        )
        kept = [*self.net.parameters(), *self.net.buffers(), *moments, self.images, self.labels]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run()
        return torch.cuda.max_memory_allocated() - before + sum(tensor.nbytes for tensor in kept)


def make_program(settings: Settings, network: Network, dtype: str, library: str, column: str) -> Program:
    """A network in training mode on the device, its loss, compiled where that is asked for, and a batch."""
    torch.manual_seed(SEED)
    device, kind = torch.device("cuda" if settings.platform == "gpu" else "cpu"), getattr(torch, dtype)
    net = network.create(num_classes=settings.num_classes)
    net = with_sites(net, network, settings.columns[column], kind, settings.image_size)
    net = cast(Any, net).to(device, memory_format=torch.channels_last).train()
    batch = {name: torch.from_numpy(values).to(device) for name, values in random_batch(settings).items()}
    images, labels = batch["image"].permute(0, 3, 1, 2), batch["label"].long()  # channels last, as they lie
    loss = loss_of(net, kind)
    return Program(net, torch.compile(loss) if library == LIBRARIES[1] else loss, images, labels)
