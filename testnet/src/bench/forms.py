"""Our engine beside llama.cpp, for every form of weights and every architecture.

    forms.py --generate PROGRAM [--results FILE] [--vocabulary FILE]

PROGRAM is the executor's example `generate`. Models are small and random, and written here
with the package gguf: each in a form, and again with the numbers that the package makes of
that form, with 32 bits. llama.cpp (the package xllamacpp, over HTTP) computes the second:
what it says is the truth. Every model is asked how probable each token of the vocabulary is
after each token of some random texts. What is shown is how far these logarithms are from the
truth, as a share of how far they are spread: the root of the mean square.

  floats      Ours with 32 bits. Only keys and values are narrower, in both.
  form        Ours in the form: activations are rounded to 8 bits, 32 together.
  llama.cpp   llama.cpp in the form. Of K's forms it rounds 256 activations together.
  best        How often the best token is that of the truth, in the form.
  greedy      Tokens that both write with 32 bits, the best one always, until the first other
              one; and how far our second best was below the best there. Where it is less than
              the two engines differ by, both are right.

With --vocabulary, the beginning of some model's file (its metadata), there is also:

  texts       Texts that both cut into the same tokens of that vocabulary.

The run fails if ours is farther from the truth than it should be.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Form
from gguf import quants

import models

CONTROLS = ["<|none|>", "<|turn|>", "<|over|>"]
TEXTS, LENGTH = 3, 24
# Of the spread; of rounding to 8 bits, some parts in a hundred are usual.
FLOATS_MAX, FORM_MAX = 0.003, 0.05
# Nat: with 32 bits the two differ by a tenth of it.
GAP_MAX = 0.05
MODELS = [
    ("llama", "F16"),
    ("llama", "Q8_0"),
    ("llama", "Q4_0"),
    ("llama", "Q4_1"),
    ("llama", "Q5_0"),
    ("llama", "Q5_1"),
    ("llama", "Q4_K"),
    ("llama", "Q5_K"),
    ("llama", "Q6_K"),
    ("qwen2", "F16"),
    ("qwen2", "Q8_0"),
    ("qwen2", "Q4_K"),
    ("qwen2", "Q6_K"),
    ("qwen3", "F16"),
    ("qwen3", "Q8_0"),
    ("qwen3", "Q4_K"),
    ("qwen3", "Q6_K"),
]
# Cut into words in one way or another.
WRITTEN = [
    "Hello, world!",
    "It's 2024, DON'T they'Ll we've I'm",
    "  two  spaces \n\n\n x\t\ty\r\n\r\nz",
    "def f(x):\n    return x**2  # 12345.678",
    "中国的首都是北京。東京は日本の首都です。",
    "Привет, как дела? مرحبا بالعالم नमस्ते",
    "👍🏽 naïve e\u0301 ½ ١٢ x² \u00a0\u3000 end",
    "<|im_start|>system <think> no </think> <tool_call>",
    "https://example.org/a_b?c=1&d=%20...!!!\n",
]


# ---- files --------------------------------------------------------------------


class Model:
    """The sizes of a random model. K's forms need rows of whole 256s."""

    vocabulary, width, hidden, layers, heads, kv_heads = 259, 512, 768, 2, 4, 2

    def __init__(self, architecture, form):
        self.architecture, self.form = architecture, form
        # Qwen3's heads may be wider than the width has room for.
        self.head = 256 if architecture == "qwen3" else self.width // self.heads

    def tensors(self):
        """Of each: name, shape, how large its numbers are, and around what."""
        query, kv = self.heads * self.head, self.kv_heads * self.head
        yield "token_embd.weight", (self.vocabulary, self.width), 0.1, None
        yield "output_norm.weight", (self.width,), 0.2, 1.0
        # One of them has no other output than its embedding.
        if self.architecture != "qwen2":
            yield "output.weight", (self.vocabulary, self.width), 0.1, None
        for layer in range(self.layers):
            part = f"blk.{layer}.".__add__
            yield part("attn_norm.weight"), (self.width,), 0.2, 1.0
            yield part("ffn_norm.weight"), (self.width,), 0.2, 1.0
            yield part("attn_q.weight"), (query, self.width), 0.06, None
            yield part("attn_k.weight"), (kv, self.width), 0.06, None
            yield part("attn_v.weight"), (kv, self.width), 0.06, None
            yield part("attn_output.weight"), (self.width, query), 0.06, None
            yield part("ffn_gate.weight"), (self.hidden, self.width), 0.06, None
            yield part("ffn_up.weight"), (self.hidden, self.width), 0.06, None
            yield part("ffn_down.weight"), (self.width, self.hidden), 0.06, None
            if self.architecture == "qwen2":
                for name, length in [("q", query), ("k", kv), ("v", kv)]:
                    yield part(f"attn_{name}.bias"), (length,), 0.5, 0.0
            if self.architecture == "qwen3":
                yield part("attn_q_norm.weight"), (self.head,), 0.4, 1.0
                yield part("attn_k_norm.weight"), (self.head,), 0.4, 1.0

    def write(self, narrow, wide):
        """The same model twice: in its form, and with 32 bits."""
        generator = np.random.default_rng(7)
        files = [self.begun(narrow), self.begun(wide)]
        for name, shape, size, around in self.tensors():
            if around is not None:
                numbers = around + size * generator.standard_normal(shape)
                for file in files:
                    file.add_tensor(name, numbers.astype(np.float32))
                continue
            form = Form[self.form]
            rows = rows_of(form, shape, size, generator)
            files[0].add_tensor(name, rows, raw_dtype=form)
            files[1].add_tensor(name, quants.dequantize(rows, form).astype(np.float32))
        for file in files:
            end(file)

    def begun(self, path):
        file = gguf.GGUFWriter(path, self.architecture)
        file.add_context_length(256)
        file.add_embedding_length(self.width)
        file.add_block_count(self.layers)
        file.add_feed_forward_length(self.hidden)
        file.add_head_count(self.heads)
        file.add_head_count_kv(self.kv_heads)
        file.add_layer_norm_rms_eps(1e-6)
        file.add_rope_freq_base(1e6 if self.architecture != "llama" else 1e4)
        if self.architecture == "qwen3":
            file.add_key_length(self.head)
            file.add_value_length(self.head)
        if self.architecture == "llama":
            file.add_rope_dimension_count(self.head)
            file.add_vocab_size(self.vocabulary)
        # No parts of characters: llama.cpp says nothing of a token until its text is whole.
        letters = [chr(byte) for byte in range(0x21, 0x7F)]
        words = [f"w{number}" for number in range(self.vocabulary - len(CONTROLS) - len(letters))]
        file.add_tokenizer_model("gpt2")
        file.add_tokenizer_pre("qwen2" if self.architecture != "llama" else "gpt-2")
        file.add_token_list([*CONTROLS, *letters, *words])
        file.add_token_types([3] * len(CONTROLS) + [1] * (self.vocabulary - len(CONTROLS)))
        file.add_token_merges(["w 0"])
        file.add_eos_token_id(2)
        return file


def end(file):
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def rows_of(form, shape, size, generator):
    """Random rows in a form, as bytes, or as floats where those are the form."""
    numbers = size * generator.standard_normal(shape).astype(np.float32)
    if form == Form.F16:
        return numbers.astype(np.float16)
    if form not in (Form.Q4_K, Form.Q5_K, Form.Q6_K):
        return quants.quantize(numbers, form)
    # The package reads these and does not write them: their bits are random.
    elements, length = gguf.GGML_QUANT_SIZES[form]
    rows, columns = shape
    blocks = generator.integers(0, 256, (rows, columns // elements, length), dtype=np.uint8)
    count = blocks.shape[:2]
    scales = size * (0.7 + 0.6 * generator.random((*count, 1)))
    # What makes numbers as large as that: factors of scales are 31.5 on average, or 64.
    steps = {Form.Q4_K: 7.5, Form.Q5_K: 15.5, Form.Q6_K: 32}[form]
    if form == Form.Q6_K:
        blocks[..., 208:] = half(scales / 64 / steps * 1.6)
    else:
        blocks[..., 0:2] = half(scales / 36 / steps)
        blocks[..., 2:4] = half(scales / 36)
    return blocks.reshape(rows, -1)


def half(numbers):
    return numbers.astype(np.float16).view(np.uint8)


# ---- what both say ------------------------------------------------------------


def ours_says(ours, texts, vocabulary):
    """For each token but the first of each text, the logarithms of all probabilities."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.writelines(",".join(map(str, text)) + "\n" for text in texts)
        file.flush()
        lines = ours.run("--score", file.name, "--alternatives", vocabulary).splitlines()
    return np.array([in_order(line.split()[1:]) for line in lines])


def in_order(pairs):
    chances = dict(zip(map(int, pairs[::2]), map(float, pairs[1::2])))
    return [chances[token] for token in range(len(chances))]


def theirs_says(theirs, texts, vocabulary):
    rows = []
    for text in texts:
        for at in range(1, len(text)):
            answer = theirs.complete(text[:at], 1, n_probs=vocabulary, ignore_eos=True)
            best = answer["completion_probabilities"][0]["top_logprobs"]
            chances = {each["id"]: each["logprob"] for each in best}
            rows.append([chances.get(token, np.nan) for token in range(vocabulary)])
    return np.array(rows)


def apart(rows, truth):
    """Of the truth's spread in each row. A constant means nothing; the least probable
    tokens may be left out by llama.cpp."""
    there = np.isfinite(rows) & np.isfinite(truth)
    difference = np.where(there, rows - truth, 0)
    spread = np.where(there, truth, 0)
    count = there.sum(axis=1, keepdims=True)
    difference = np.where(there, difference - difference.sum(axis=1, keepdims=True) / count, 0)
    spread = np.where(there, spread - spread.sum(axis=1, keepdims=True) / count, 0)
    return float(np.sqrt((difference**2).sum() / (spread**2).sum()))


def compare(program, architecture, form, report):
    """Whether ours is as near to the truth as it should be."""
    what, model = f"{architecture}, {form}", Model(architecture, form)
    chance = random.Random(3)
    texts = [[chance.randrange(model.vocabulary) for _ in range(LENGTH)] for _ in range(TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        narrow, wide = f"{folder}/narrow.gguf", f"{folder}/wide.gguf"
        model.write(narrow, wide)
        ours, ours_wide = models.Ours(program, narrow), models.Ours(program, wide)
        says = ours_says(ours, texts, model.vocabulary)
        says_wide = ours_says(ours_wide, texts, model.vocabulary)
        with models.Theirs(wide, 1) as theirs:
            truth = theirs_says(theirs, texts, model.vocabulary)
            written = theirs.complete(texts[0], models.GREEDY_TOKENS)["tokens"]
        with models.Theirs(narrow, 1) as theirs:
            others = theirs_says(theirs, texts, model.vocabulary)
        tokens = ours_wide.greedy(texts[0], 1)
    floats, own, their = apart(says_wide, truth), apart(says, truth), apart(others, truth)
    same = np.mean(np.nanargmax(truth, axis=1) == np.argmax(says, axis=1))
    their_same = np.mean(np.nanargmax(truth, axis=1) == np.nanargmax(others, axis=1))
    report.add(f"{what}: floats", "of 1", [floats], aim=FLOATS_MAX)
    report.add(f"{what}: form", "of 1", [own], f"llama.cpp {their:.4f}", aim=FORM_MAX)
    report.add(f"{what}: best", "%", [100 * same], f"llama.cpp {100 * their_same:.1f}")
    pairs = list(zip(tokens, written))
    equal = next((at for at, (one, other) in enumerate(pairs) if one[0] != other), len(pairs))
    gap = 0 if equal == len(pairs) else tokens[equal][2]
    note = f"there our gap is {gap:.4f} nat" if gap else None
    report.add(f"{what}: greedy tokens that are the same", f"of {len(pairs)}", [equal], note)
    return floats < FLOATS_MAX and own < FORM_MAX and gap < GAP_MAX


# ---- a real vocabulary --------------------------------------------------------


def with_vocabulary(program, beginning, report):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/words.gguf"
        write_vocabulary(beginning, path)
        ours = models.Ours(program, path)
        texts = [*WRITTEN, *Path("docs/models.md").read_text().split("\n\n")]
        with models.Theirs(path, 1) as theirs:
            their = [theirs.tokens(text) for text in texts]
            mine = ours.tokens(texts)
        same = [one == other for one, other in zip(mine, their)]
        for text, equal in zip(texts, same):
            if not equal:
                print(f"other tokens: {text!r}")
        report.add("texts that are the same tokens", f"of {len(texts)}", [sum(same)])
    return all(same)


def write_vocabulary(beginning, path):
    """A small model with the vocabulary of another's file."""
    # The reader wants as many bytes as the head says that there are.
    whole = Path(f"{path}.whole")
    whole.write_bytes(Path(beginning).read_bytes())
    with whole.open("r+b") as file:
        file.truncate(1 << 37)
    fields = gguf.GGUFReader(whole).fields
    value = lambda key: fields[key].contents() if key in fields else None
    tokens, width = value("tokenizer.ggml.tokens"), 32
    file = gguf.GGUFWriter(path, "qwen2")
    file.add_context_length(4096)
    file.add_embedding_length(width)
    file.add_block_count(1)
    file.add_feed_forward_length(width)
    file.add_head_count(1)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_tokenizer_model(value("tokenizer.ggml.model"))
    file.add_tokenizer_pre(value("tokenizer.ggml.pre"))
    file.add_token_list(tokens)
    file.add_token_types(value("tokenizer.ggml.token_type"))
    file.add_token_merges(value("tokenizer.ggml.merges"))
    file.add_eos_token_id(value("tokenizer.ggml.eos_token_id"))
    template = value("tokenizer.chat_template")
    if template:
        file.add_chat_template(template)
    tensor = lambda name, *shape: file.add_tensor(name, np.ones(shape, np.float32))
    tensor("token_embd.weight", len(tokens), width)
    tensor("output_norm.weight", width)
    for name in ["attn_norm", "ffn_norm"]:
        tensor(f"blk.0.{name}.weight", width)
    for name in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        tensor(f"blk.0.{name}.weight", width, width)
    for name in ["attn_q", "attn_k", "attn_v"]:
        tensor(f"blk.0.{name}.bias", width)
    end(file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--generate", required=True)
    parser.add_argument("--results")
    parser.add_argument("--vocabulary")
    arguments = parser.parse_args()
    report = models.Report(arguments.results)
    good = [compare(arguments.generate, *model, report) for model in MODELS]
    if arguments.vocabulary:
        good.append(with_vocabulary(arguments.generate, arguments.vocabulary, report))
    report.show()
    if not all(good):
        raise SystemExit("ours is farther from the truth than it should be")


if __name__ == "__main__":
    main()
