"""Makes data/rows.f32 from the copy of the data set that scikit-learn brings along.

    python3 data.py            # writes the file
    python3 data.py --check    # compares it with what would be written; exit code 1 if it differs

Needs scikit-learn; README.md says what the file holds. Sums are exact (`math.fsum`), so
that every version of every library gives the same bytes.
"""

import math
import struct
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer

FILE = Path(__file__).parent / "data" / "rows.f32"

# Row i of the data set is for: i % 5 in 0, 1, 2 training; 3 choosing; 4 the final test.
PARTS = {"training": (0, 1, 2), "validation": (3,), "test": (4,)}


def main():
    features, labels = load_breast_cancer(return_X_y=True)
    rows = [[float(value) for value in row] for row in features]
    labels = [int(label) for label in labels]
    made = encode(rows, labels)
    if sys.argv[1:] == ["--check"]:
        if FILE.read_bytes() != made:
            sys.exit(f"{FILE.name} is not what scikit-learn's data set gives")
        print(f"{FILE.name} is what scikit-learn's data set gives, to the last bit")
    elif sys.argv[1:]:
        sys.exit("usage: data.py [--check]")
    else:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_bytes(made)
        print(f"{len(made)} bytes in {FILE}")


def encode(rows, labels):
    """All rows, part after part, as little-endian 32-bit floats."""
    parts = {name: indices(len(rows), rests) for name, rests in PARTS.items()}
    scales = [scale([rows[i][column] for i in parts["training"]]) for column in range(len(rows[0]))]
    words = []
    for part in parts.values():
        for i in part:
            words += [
                (value - mean) / deviation for value, (mean, deviation) in zip(rows[i], scales)
            ]
            # The constant by which the intercept is a weight like the others, and the truth.
            words += [1.0, float(labels[i])]
    return struct.pack(f"<{len(words)}f", *words)


def indices(count, rests):
    return [i for i in range(count) if i % 5 in rests]


def scale(values):
    """Mean and standard deviation of a column: of its training rows, and no others."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


if __name__ == "__main__":
    main()
