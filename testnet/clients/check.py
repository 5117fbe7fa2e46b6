"""Every endpoint of a gateway, by OpenAI's own client for Python.

usage: check.py KEY SLOW_KEY

OPENAI_BASE_URL names the gateway. KEY may ask the models `talker` and `minilm` (workers of a
provider) and `embedder` (a server beside one); SLOW_KEY may ask twice a minute. check.mjs is the same
in JavaScript.
"""

import sys

import openai

HELLO = [{"role": "user", "content": "Say hello."}]
TALKER, EMBEDDER, ENCODER = "talker", "embedder", "minilm"


def main() -> None:
    key, slow_key = sys.argv[1:]
    client = openai.OpenAI(api_key=key, max_retries=0)
    checks = (models, whole, streamed, options, completions, embeddings, encoder, refusals)
    for check in checks:
        check(client)
        print(f"  {check.__name__}: as it should be")
    wrong_key(openai.OpenAI(api_key="sk-suanli-wrong", max_retries=0))
    too_often(openai.OpenAI(api_key=slow_key, max_retries=0))
    print("  keys: as it should be")


def models(client) -> None:
    assert {TALKER, EMBEDDER} <= {model.id for model in client.models.list()}
    model = client.models.retrieve(TALKER)
    assert (model.id, model.object) == (TALKER, "model")


def whole(client) -> None:
    answer = client.chat.completions.create(model=TALKER, messages=HELLO, max_tokens=12)
    assert answer.object == "chat.completion" and answer.model == TALKER
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.message.refusal is None and choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def streamed(client) -> None:
    asked = dict(model=TALKER, messages=HELLO, max_tokens=12, seed=1, stream=True)
    events = list(client.chat.completions.create(**asked))
    assert events[0].choices[0].delta.role == "assistant"
    assert all(event.usage is None and event.choices for event in events)
    assert len({event.id for event in events}) == 1
    last = events[-1].choices[0]
    assert last.finish_reason in ("stop", "length") and not last.delta.content
    with_usage = list(
        client.chat.completions.create(**asked, stream_options={"include_usage": True})
    )
    assert text(with_usage) == text(events) != ""
    assert with_usage[-1].choices == [] and with_usage[-1].usage.completion_tokens > 0
    # Who leaves in the middle is followed by others.
    with client.chat.completions.create(**{**asked, "max_tokens": 500}) as left:
        next(iter(left))
    whole(client)


def text(events) -> str:
    return "".join(event.choices[0].delta.content or "" for event in events if event.choices)


def options(client) -> None:
    def ask(**more) -> str:
        answer = client.chat.completions.create(
            model=TALKER, messages=HELLO, **{"max_tokens": 24, **more}
        )
        return answer.choices[0].message.content

    warm = dict(temperature=1.5, top_p=0.95)
    assert ask(seed=5, **warm) == ask(seed=5, **warm)
    assert len({ask(seed=seed, **warm) for seed in range(6)}) > 1
    greedy = ask(temperature=0)
    assert greedy == ask(temperature=0, seed=3)
    word = greedy.split()[1]
    cut = ask(temperature=0, stop=[word])
    assert cut == greedy[: greedy.index(word)]


def completions(client) -> None:
    asked = dict(model=TALKER, prompt="One, two, three,", max_tokens=8, temperature=0)
    answer = client.completions.create(**asked)
    assert answer.object == "text_completion" and answer.choices[0].text
    events = list(client.completions.create(**asked, stream=True))
    assert "".join(event.choices[0].text for event in events) == answer.choices[0].text
    assert events[-1].choices[0].finish_reason in ("stop", "length")


def embeddings(client) -> None:
    answer = client.embeddings.create(
        model=EMBEDDER, input=["a cat", "a kitten", "tax law"], encoding_format="float"
    )
    vectors = [row.embedding for row in answer.data]
    assert len(vectors) == 3 and len({len(vector) for vector in vectors}) == 1
    assert answer.usage.prompt_tokens > 0


def encoder(client) -> None:
    def ask(**asked):
        return client.embeddings.create(**{"model": ENCODER, **asked})

    # Without a format the client asks for base64, and decodes it.
    answer = ask(input=["a cat", "a kitten", "tax law"])
    cat, kitten, law = (row.embedding for row in answer.data)
    assert [row.index for row in answer.data] == [0, 1, 2] and answer.model == ENCODER
    dot = lambda one, other: sum(a * b for a, b in zip(one, other))
    assert len(cat) == 384 and abs(dot(cat, cat) - 1) < 1e-5
    assert dot(cat, kitten) > 0.6 > 0.3 > dot(cat, law)
    # Two around each text, and its pieces.
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 13
    as_floats = ask(input="a cat", encoding_format="float", dimensions=384)
    assert as_floats.data[0].embedding == list(cat)
    as_tokens = ask(input=[[101, 1037, 4937, 102], [101, 102]])
    assert as_tokens.data[0].embedding == cat and len(as_tokens.data) == 2
    assert len(ask(input=["x"] * 2048).data) == 2048
    wrong = [
        ("input", {"input": "word " * 600}, "602 tokens, and this model reads 512"),
        ("input", {"input": ["a", ""]}, "input[1]"),
        ("input", {"input": ["a"] * 2049}, "2048"),
        ("dimensions", {"input": "a", "dimensions": 64}, "384"),
        ("model", {"input": "a", "model": TALKER}, "no embeddings"),
    ]
    for param, asked, said in wrong:
        try:
            ask(**asked)
        except openai.BadRequestError as raised:
            assert raised.param == param and said in str(raised), raised
        else:
            raise AssertionError(f"{asked} was not refused")
    try:
        client.chat.completions.create(model=ENCODER, messages=HELLO)
    except openai.BadRequestError as raised:
        assert raised.param == "model" and "/v1/embeddings" in str(raised)
    else:
        raise AssertionError("an encoder talks")


def refusals(client) -> None:
    def refused(error, param=None, code=None, **asked) -> None:
        try:
            client.chat.completions.create(**{"model": TALKER, "messages": HELLO, **asked})
        except error as raised:
            assert param is None or raised.param == param, raised
            assert code is None or raised.code == code, raised
        else:
            raise AssertionError(f"{asked} was not refused")

    refused(openai.NotFoundError, code="model_not_found", model="nobody's")
    refused(openai.BadRequestError, param="n", n=2)
    refused(openai.BadRequestError, param="messages", messages=[])
    refused(openai.BadRequestError, param="temperature", temperature=-1)
    long = [{"role": "user", "content": "word " * 20_000}]
    refused(openai.BadRequestError, messages=long)


def wrong_key(client) -> None:
    try:
        client.models.list()
    except openai.AuthenticationError as error:
        assert error.code == "invalid_api_key"
    else:
        raise AssertionError("a wrong key is taken")


def too_often(client) -> None:
    for _ in range(2):
        client.chat.completions.create(model=TALKER, messages=HELLO, max_tokens=1)
    try:
        client.chat.completions.create(model=TALKER, messages=HELLO, max_tokens=1)
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded"
        assert 0 < int(error.response.headers["retry-after"]) <= 60
    else:
        raise AssertionError("a rate is not held")


if __name__ == "__main__":
    main()
