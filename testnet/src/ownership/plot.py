# Draws the ownership curve: points as JSON on stdin, an SVG on stdout.

import io
import json
import sys

import matplotlib

matplotlib.use("svg")
# The same points make the same bytes.
matplotlib.rcParams["svg.hashsalt"] = "suanli"
from matplotlib import pyplot

points = json.load(sys.stdin)
duty = [100 * point["duty"] for point in points]
figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))

fewer = [point["owned"]["machines"] / point["pooled"]["machines"] for point in points]
left.plot(duty, fewer, marker="o", color="#1f5fa8", label="measured")
least, most = min(duty), max(duty)
ideal = [least + (most - least) * n / 100 for n in range(101)]
left.plot(ideal, [100 / (0.8 * part) for part in ideal], "--", color="#999999", label="work alone, without waiting")
left.axhline(1, color="#cccccc", linewidth=1)
left.set_yscale("log", base=2)
left.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
left.set_xlabel("duty: part of the day with work, %")
left.set_ylabel("machines owned for each one pooled")
left.legend(frameon=False)

for key, way, label, colour in [
    ("owned", "cost_per_job", "own machine", "#b5432a"),
    ("pooled", "cost_per_job", "bought from the pool", "#1f5fa8"),
    ("pooled", "machines_per_job", "the pool's machines", "#6aa5dd"),
]:
    right.plot(duty, [point[key][way] for point in points], marker="o", color=colour, label=label)
right.set_ylim(bottom=0)
right.set_xlabel("duty: part of the day with work, %")
right.set_ylabel("cost of a job, $")
right.legend(frameon=False)

for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
picture = io.StringIO()
figure.savefig(picture, format="svg", metadata={"Date": None})
sys.stdout.write("\n".join(line.rstrip() for line in picture.getvalue().splitlines()) + "\n")
