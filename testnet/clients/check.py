"""Every endpoint of a gateway, by OpenAI's own client for Python.

usage: check.py KEY SLOW_KEY

OPENAI_BASE_URL names the gateway. KEY may ask the models `talker` and `minilm` (workers of a
provider) and `embedder` (a server beside one); SLOW_KEY may ask twice a minute. check.mjs is the same
in JavaScript.
"""

import json
import sys

import openai

HELLO = [{"role": "user", "content": "Say hello."}]
TALKER, EMBEDDER, ENCODER = "talker", "embedder", "minilm"


def main() -> None:
    key, slow_key = sys.argv[1:]
    client = openai.OpenAI(api_key=key, max_retries=0)
    checks = (
        models, whole, streamed, options, completions, likelihoods, several, forms, tools,
        responses, embeddings, encoder, refusals,
    )
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


def likelihoods(client) -> None:
    asked = dict(messages=HELLO, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3)
    answer = client.chat.completions.create(model=TALKER, **asked)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == content(answer)
    for token in tokens:
        best = [likely.logprob for likely in token.top_logprobs]
        assert best == sorted(best, reverse=True) and len(best) == 3
        assert token.logprob == best[0] <= 0
    events = client.chat.completions.create(model=TALKER, **asked, stream=True)
    streamed = [
        token
        for event in events
        for token in (event.choices[0].logprobs.content if event.choices[0].logprobs else [])
    ]
    assert streamed == tokens
    text = client.completions.create(
        model=TALKER, prompt="One, two,", max_tokens=4, temperature=0, logprobs=2
    )
    told = text.choices[0].logprobs
    assert "".join(told.tokens) == text.choices[0].text
    assert len(told.token_logprobs) == len(told.top_logprobs) == 4
    # What is made impossible does not come.
    first = client.chat.completions.create(model=TALKER, **{**asked, "max_tokens": 1})
    word = first.choices[0].logprobs.content[0].token
    penalised = client.chat.completions.create(
        model=TALKER, messages=HELLO, max_tokens=40, temperature=0, frequency_penalty=2
    )
    assert content(penalised).count(word) <= 2


def content(answer) -> str:
    return answer.choices[0].message.content


def several(client) -> None:
    asked = dict(model=TALKER, messages=HELLO, max_tokens=16, temperature=1.5, seed=4, n=3)
    answer = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert answer.usage.completion_tokens > 16
    heard = ["", "", ""]
    for event in client.chat.completions.create(**asked, stream=True):
        (choice,) = event.choices
        heard[choice.index] += choice.delta.content or ""
    assert heard == texts


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Yinchuan", "Guiyang"]},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
    },
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


def fits(text: str) -> None:
    value = json.loads(text)
    assert value.keys() == {"city", "degrees"}, value
    assert value["city"] in ("Yinchuan", "Guiyang") and -40 <= value["degrees"] <= 50


def forms(client) -> None:
    def ask(kind: dict, **more):
        return client.chat.completions.create(
            model=TALKER,
            messages=[{"role": "user", "content": "How warm is Yinchuan? Answer as JSON."}],
            response_format=kind,
            **more,
        )

    schema = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        answer = ask(schema, seed=seed)
        assert answer.choices[0].finish_reason == "stop"
        fits(content(answer))
    fits(text(ask(schema, seed=9, stream=True)))
    assert content(ask({"type": "json_object"}, max_tokens=30)).startswith("{")
    wrong = {"type": "json_schema", "json_schema": {"name": "w", "schema": {"type": "thing"}}}
    try:
        ask(wrong)
    except openai.BadRequestError as error:
        assert "schema" in str(error)
    else:
        raise AssertionError("a wrong schema is taken")


TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "How it is", "parameters": SCHEMA},
    },
    {"type": "function", "function": {"name": "now", "description": "The time"}},
]


def tools(client) -> None:
    question = [{"role": "user", "content": "How warm is Yinchuan?"}]
    named = {"type": "function", "function": {"name": "weather"}}

    def ask(messages=question, **more):
        return client.chat.completions.create(
            model=TALKER, messages=messages, tools=TOOLS, max_tokens=120, **more
        )

    answer = ask(tool_choice=named, seed=1)
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.type == "function" and call.function.name == "weather"
    fits(call.function.arguments)

    name, arguments, ids = "", "", set()
    for event in ask(tool_choice=named, seed=1, stream=True):
        for part in event.choices[0].delta.tool_calls or []:
            assert part.index == 0
            name += part.function.name or ""
            arguments += part.function.arguments or ""
            ids |= {part.id} - {None}
    assert (name, arguments) == ("weather", call.function.arguments) and len(ids) == 1

    required = ask(tool_choice="required", parallel_tool_calls=False, seed=2)
    (one,) = required.choices[0].message.tool_calls
    assert one.function.name in ("weather", "now")
    free = ask(tool_choice="none", seed=3)
    assert free.choices[0].message.tool_calls is None and content(free)
    # What the tool said is read, and answered in words.
    said = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    after = ask(question + [choice.message.to_dict(), said], tool_choice="none", temperature=0)
    assert content(after)


def responses(client) -> None:
    asked = dict(model=TALKER, instructions="Be brief.", input="Say hello.", max_output_tokens=12)
    whole = client.responses.create(**asked, temperature=0)
    assert whole.object == "response" and whole.output_text
    assert whole.status in ("completed", "incomplete") and whole.usage.output_tokens <= 12
    events = list(client.responses.create(**asked, temperature=0, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == f"response.{whole.status}" and last.response.output_text == "".join(deltas)
    assert [event.sequence_number for event in events] == list(range(len(events)))

    tool = {"type": "function", **TOOLS[0]["function"], "strict": True}
    called = client.responses.create(
        model=TALKER, input="How warm is Yinchuan?", tools=[tool],
        tool_choice="required", parallel_tool_calls=False,
    )
    (call,) = called.output
    assert call.type == "function_call" and call.name == "weather"
    fits(call.arguments)
    conversation = [
        {"role": "user", "content": "How warm is Yinchuan?"},
        call.to_dict(),
        {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"},
    ]
    after = client.responses.create(model=TALKER, input=conversation, max_output_tokens=20)
    assert after.output_text
    shaped = client.responses.create(
        model=TALKER,
        input="How warm is Yinchuan? Answer as JSON.",
        text={"format": {"type": "json_schema", "name": "w", "schema": SCHEMA, "strict": True}},
    )
    fits(shaped.output_text)
    try:
        client.responses.create(**asked, previous_response_id="resp_1")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id"
    else:
        raise AssertionError("a response is remembered")


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
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 12, answer.usage
    as_floats = ask(input="a cat", encoding_format="float", dimensions=384)
    # Numbers of 32 bits, as text and as they are.
    assert max(abs(a - b) for a, b in zip(as_floats.data[0].embedding, cat)) < 1e-7
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
    refused(openai.BadRequestError, param="n", n=9)
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
