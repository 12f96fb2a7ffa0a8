"""The first epoch of a job, ours beside torch's, over several seeds: do the loss curves agree within the seeds' spread?

    python -m tests.nn.recipe cifar10-small data/cifar10.h5 [SEEDS] [STEPS] [float32 or float64]

Both start from the same weights and see the same batches; torch computes everything else by itself. It takes minutes.
With a high learning rate, training amplifies rounding errors from step to step. In float64, the first steps must then
agree to many digits, which tells rounding from a difference in what is computed. With `init = "dirac"`, 1 % of the
pooling windows have two equal maxima, of which rounding chooses one; for this test, give the job `init = "he"`.
"""

# ruff: noqa: T201 - it is a command

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from cnnjob import nn
from cnnjob.checks.benchmarks.torch_networks import fill, module_of
from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.nn.arena import Arena
from cnnjob.nn.random import Purpose, permutation
from cnnjob.nn.tensors import Tensor
from cnnjob.training.build import build_network, build_optimiser, build_pixels, build_schedule, build_training_options
from cnnjob.training.split import split_training_images
from tests.nn.torch_muon import judge_like

WINDOWS = 8
"""Parts of an epoch over which losses are averaged."""

EARLY = 3
"""Steps whose losses are compared one by one: later, each step has amplified the rounding errors of those before it."""


class Recipe:
    """A job's first epoch with one seed."""

    def __init__(self, job: Job, dataset: Dataset, seed: int, backend: nn.NumPyBackend, steps: int | None) -> None:
        self.job, self.train = job, job.train
        images, labels = dataset.load("train")
        chosen, size = split_training_images(job, dataset)[0], job.train.batch_size
        whole = len(chosen) // size
        self.steps = min(steps or whole, whole)
        self.network = build_network(job.model, dataset.image_shape, len(dataset.class_names))
        self.optimiser, self.backend = build_optimiser(job.train), backend
        self.pixels, self.options = build_pixels(job.data, dataset.mean, dataset.std), build_training_options(job)
        self.state = nn.State(self.network, self.optimiser, self.backend)
        self.state.initialise(
            self.network, seed, images[chosen[: nn.count_whitening_images(images.shape[1:])]], self.pixels
        )
        self.inputs = nn.build_step_inputs(self.backend, images, labels, whole, size, seed)
        self.inputs.order[:] = chosen[permutation(len(chosen), seed, Purpose.ORDER, 0)[: whole * size]]
        total = whole * job.train.epochs
        self.inputs.learning_rates[:] = build_schedule(job.train).rates(range(whole), total)
        self.inputs.lookahead[:] = (
            self.optimiser.lookahead.alphas(range(whole), total) if self.optimiser.lookahead else -1
        )

    def theirs(self) -> np.ndarray[Any, Any]:
        """Every step's loss by torch."""
        module = module_of(torch, self.network.layers)
        module.to(torch.float64 if self.backend.dtype == np.float64 else torch.float32)
        fill(torch, module, self.network, self.state.weights)
        judge = judge_like(self.optimiser, module, self.network.layers, 1.0)
        factors = [group["lr"] for group in judge.param_groups]
        slow = [tensor.detach().clone() for tensor in module.state_dict().values()]
        losses = []
        with threadpool_limits(self.backend.workers.count):
            torch.set_num_threads(self.backend.workers.count)
            for step, batch in enumerate(self.batches()):
                for group, factor in zip(judge.param_groups, factors, strict=True):
                    group["lr"] = factor * self.inputs.learning_rates[step]
                order = self.inputs.order[step * len(batch) : (step + 1) * len(batch)]
                outputs = module(torch.from_numpy(batch).permute(0, 3, 1, 2))
                loss = torch.nn.functional.cross_entropy(
                    outputs, torch.from_numpy(self.inputs.labels[order]), label_smoothing=self.train.label_smoothing
                )
                judge.zero_grad()
                loss.backward()
                if self.train.clip_norm:
                    torch.nn.utils.clip_grad_norm_(module.parameters(), self.train.clip_norm)
                judge.step()
                look(module, slow, float(self.inputs.lookahead[step]))
                losses.append(loss.item())
        self.inputs.position[:] = 0
        return np.array(losses)

    def batches(self) -> Any:
        """The images as the network sees them, step by step."""

        def build(arena: Arena) -> tuple[Tensor, Any]:
            x = Tensor.take(
                arena, (self.train.batch_size, *self.network.image_shape), self.backend.dtype, trainable=False
            )
            return x, self.backend.gather(arena, self.inputs, x, self.pixels, self.options.augmentation)

        x, load = Arena.allocate(self.backend, build)
        for _ in range(self.steps):
            load()
            yield x.value.copy()
            self.inputs.position += 1

    def ours(self) -> np.ndarray[Any, Any]:
        """Every step's loss by us."""
        size = self.train.batch_size
        plan = nn.TrainingPlan(
            self.backend, self.network, self.state, self.optimiser, self.inputs, self.pixels, size, self.options
        )
        with threadpool_limits(1):
            for _ in range(self.steps):
                plan.step()
        return self.inputs.losses[: self.steps].copy()


def look(module: Any, slow: list[Any], share: float) -> None:
    """Lookahead on everything that a module holds, its running statistics too."""
    if share < 0:
        return
    with torch.no_grad():
        for fast, kept in zip(module.state_dict().values(), slow, strict=True):
            if fast.dtype.is_floating_point:
                kept.lerp_(fast, 1 - share)
                fast.copy_(kept)


def main(name: str, path: str, seeds: str = "5", steps: str = "0", dtype: str = "float32") -> None:
    """Print the mean loss of each part of the epoch: ours, torch's, the spread of the seeds."""
    job, dataset = Job.load(name), Dataset.open(Path(path))
    with nn.Workers(nn.available_cores()) as workers:
        curves = []
        for seed in range(int(seeds)):
            recipe = Recipe(job, dataset, seed, nn.NumPyBackend(workers, dtype), int(steps) or None)
            theirs, ours = recipe.theirs(), recipe.ours()
            curves.append((theirs, ours))
            early = ", ".join(f"{difference:.0e}" for difference in np.abs(ours - theirs)[:EARLY])
            print(
                f"seed {seed}: last loss {ours[-1]:.4f}, torch {theirs[-1]:.4f}; first differences {early}", flush=True
            )
    parts = np.array(
        [[[part.mean() for part in np.array_split(c, min(WINDOWS, len(c)))] for c in pair] for pair in curves]
    )
    theirs, ours = parts[:, 0], parts[:, 1]  # (seeds, windows)
    print("part   ours     torch    difference  spread of torch's seeds")
    for part in range(ours.shape[1]):
        t, o = theirs[:, part], ours[:, part]
        print(f"{part + 1:4} {o.mean():8.4f} {t.mean():8.4f} {o.mean() - t.mean():+11.4f} {t.std(ddof=1):12.4f}")
    within = bool((np.abs(ours.mean(0) - theirs.mean(0)) <= theirs.std(0, ddof=1)).all())
    print("within the spread" if within else "NOT within the spread")
    raise SystemExit(not within)


if __name__ == "__main__":
    main(*sys.argv[1:])
