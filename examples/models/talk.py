"""A short conversation with a model on the exchange, by OpenAI's own client.

usage: talk.py MODEL [--wait FILE]

OPENAI_BASE_URL and OPENAI_API_KEY say which node is asked. Each answer is printed as it
comes, and what it took stands below it. With --wait the second answer makes FILE when it is
under way: whoever wants to disturb it knows when.
"""

import sys
import time

from openai import OpenAI

QUESTIONS = [
    "Who are you? Answer in one sentence.",
    "Explain why a fleet of idle computers is worth more together than alone.",
    "Say that in five words.",
]
# The answer is well under way with so many pieces.
UNDER_WAY = 20


def main() -> None:
    model = sys.argv[1]
    signal = sys.argv[3] if sys.argv[2:3] == ["--wait"] else None
    client = OpenAI()
    wait_for(client, model)
    messages = []
    read = written = 0
    for number, question in enumerate(QUESTIONS):
        print(f"\n> {question}")
        messages.append({"role": "user", "content": question})
        answer, usage = ask(client, model, messages, signal if number == 1 else None)
        messages.append({"role": "assistant", "content": answer})
        read += usage.prompt_tokens
        written += usage.completion_tokens
    print(f"\nin all {read} tokens read, {written} written")


def wait_for(client: OpenAI, model: str) -> None:
    for _ in range(120):
        served = {one.id: one for one in client.models.list()}
        if model in served:
            return
        time.sleep(0.5)
    sys.exit(f"nobody serves {model}")


def ask(client, model, messages, signal):
    began = time.monotonic()
    first = last = None
    longest = 0.0
    pieces = []
    usage = None
    stream = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=160,
        temperature=0.3,
        seed=11,
        stream=True,
        stream_options={"include_usage": True},
    )
    for event in stream:
        usage = event.usage or usage
        if not event.choices or not event.choices[0].delta.content:
            continue
        now = time.monotonic()
        first = first or now
        longest = max(longest, now - (last or now))
        last = now
        pieces.append(event.choices[0].delta.content)
        sys.stdout.write(pieces[-1])
        sys.stdout.flush()
        if signal and len(pieces) == UNDER_WAY:
            open(signal, "w").close()
    took = max(last - first, 1e-9)
    print(
        f"\n  [{usage.prompt_tokens} tokens read, {usage.completion_tokens} written; "
        f"first after {first - began:.2f} s, then {(len(pieces) - 1) / took:.0f} a second, "
        f"longest pause {longest:.2f} s]"
    )
    return "".join(pieces), usage


if __name__ == "__main__":
    main()
