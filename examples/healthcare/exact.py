"""Does what train.wgsl does, in NumPy, and compares weights with a job's to the last bit.

    python3 exact.py DIR       # the folder with model-0.f32 to model-99.f32

NumPy rounds each multiplication and addition of 32-bit floats by itself, as the IEEE
standard says. So does train.wgsl on every device, if it keeps what it promises. All units
at once take some ten seconds. Exit code 1 if a bit differs.
"""

import sys
import tomllib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
F32 = np.float32

ROW, QUADS, SLICES = 32, 8, 8
TRAINING = 342
STEPS = 1000


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: exact.py DIR")
    with open(HERE / "job.toml", "rb") as file:
        configurations = tomllib.load(file)["array"]["list"]
    rows = np.fromfile(HERE / "data" / "rows.f32", "<f4").reshape(-1, ROW)[:TRAINING]
    expected = train(rows, configurations)[:, : ROW - 1]
    files = [Path(sys.argv[1]) / f"model-{unit}.f32" for unit in range(len(configurations))]
    found = np.array([np.fromfile(file, "<f4")[: ROW - 1] for file in files])
    different = np.flatnonzero((expected.view(np.uint32) != found.view(np.uint32)).any(axis=1))
    if different.size:
        sys.exit(f"exact: other weights in {different.size} units, unit {different[0]} first")
    print(f"the weights of all {len(files)} units are those of NumPy, to the last bit")


def train(rows, configurations):
    """Weights of each configuration, a row each."""
    rate, l2, momentum = (
        np.array([[F32(values[key])] for values in configurations], F32)
        for key in ("rate", "l2", "momentum")
    )
    penalised, learned = np.ones(ROW, F32), np.ones(ROW, F32)
    penalised[-2:], learned[-1:] = 0, 0
    truth = rows[:, -1]
    weights = np.zeros((len(configurations), ROW), F32)
    velocity = np.zeros_like(weights)
    for _ in range(STEPS):
        errors = probability(scores(rows, weights)) - truth
        slices = np.zeros((len(configurations), SLICES, ROW), F32)
        for first in range(0, len(rows), SLICES):
            some = slice(first, min(first + SLICES, len(rows)))
            slices[:, : some.stop - first] += errors[:, some, None] * rows[some]
        total = np.zeros_like(weights)
        for part in range(SLICES):
            total = total + slices[:, part]
        gradient = total * F32(1 / TRAINING) + l2 * penalised * weights
        velocity = momentum * velocity - rate * gradient * learned
        weights = weights + velocity
    return weights


def scores(rows, weights):
    lanes = np.zeros((len(weights), len(rows), 4), F32)
    for quad in range(QUADS):
        columns = slice(4 * quad, 4 * quad + 4)
        lanes += rows[:, columns] * weights[:, None, columns]
    return (lanes[..., 0] + lanes[..., 1]) + (lanes[..., 2] + lanes[..., 3])


def probability(score):
    small = exp_below(-np.abs(score))
    likelier = reciprocal(F32(1) + small)
    return np.where(score > 0, likelier, small * likelier)


def exp_below(x):
    bounded = np.maximum(x, F32(-40))
    power = np.floor(bounded * F32(1.442695) + F32(0.5))
    rest = bounded - power * F32(0.6931472)
    total = np.full_like(rest, F32(1 / 720))
    for factor in (1 / 120, 1 / 24, 1 / 6, 0.5, 1, 1):
        total = F32(factor) + total * rest
    return total * ((power.astype(np.int32) + 127) << 23).view(F32)


def reciprocal(x):
    guess = F32(1.457107) - F32(0.5) * x
    for _ in range(3):
        guess = guess * (F32(2) - x * guess)
    return guess


if __name__ == "__main__":
    main()
