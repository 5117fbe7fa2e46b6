"""Makes a.f32 and b.f32: numbers from -1 to 1, the same on every machine.

    python3 matrices.py
"""

import struct
from pathlib import Path

FOLDER = Path(__file__).parent


def numbers(count, state):
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        # 24 bits: none is lost in single precision.
        yield (state >> 8) / 2**23 - 1


def write(name, rows, columns, state):
    made = numbers(rows * columns, state)
    (FOLDER / name).write_bytes(struct.pack(f"<{rows * columns}f", *made))


write("a.f32", 200, 150, 1)
write("b.f32", 150, 170, 2)
