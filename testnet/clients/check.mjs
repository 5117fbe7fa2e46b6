// Every endpoint of a gateway, by OpenAI's own client for JavaScript.
//
// usage: node check.mjs KEY SLOW_KEY
//
// OPENAI_BASE_URL names the gateway. The same as check.py, which says more.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [key, slowKey] = process.argv.slice(2);
const client = new OpenAI({ apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const [model, embedder] = ["talker", "embedder"];
const ends = ["stop", "length"];

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const text = (events) =>
  events.map((event) => event.choices[0]?.delta.content ?? "").join("");

async function models() {
  const ids = (await all(await client.models.list())).map((one) => one.id);
  assert(ids.includes(model) && ids.includes(embedder));
  assert.equal((await client.models.retrieve(model)).id, model);
}

async function whole() {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 12 });
  const [choice] = answer.choices;
  assert.equal(choice.message.role, "assistant");
  assert.equal(choice.message.refusal, null);
  assert(choice.message.content && ends.includes(choice.finish_reason));
  const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
  assert(prompt_tokens > 0 && completion_tokens > 0 && completion_tokens <= 12);
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
}

async function streamed() {
  const asked = { model, messages, max_tokens: 12, seed: 1, stream: true };
  const events = await all(await client.chat.completions.create(asked));
  assert.equal(events[0].choices[0].delta.role, "assistant");
  assert(ends.includes(events.at(-1).choices[0].finish_reason));
  const withUsage = await all(
    await client.chat.completions.create({ ...asked, stream_options: { include_usage: true } }),
  );
  assert.equal(text(withUsage), text(events));
  assert(text(events) !== "" && withUsage.at(-1).usage.completion_tokens > 0);
  // Who leaves in the middle is followed by others.
  const left = await client.chat.completions.create({ ...asked, max_tokens: 500 });
  for await (const _ of left) break;
  await whole();
}

async function completions() {
  const asked = { model, prompt: "One, two, three,", max_tokens: 8, temperature: 0 };
  const answer = await client.completions.create(asked);
  const events = await all(await client.completions.create({ ...asked, stream: true }));
  assert.equal(events.map((event) => event.choices[0].text).join(""), answer.choices[0].text);
}

const schema = {
  type: "object",
  properties: { city: { enum: ["Yinchuan", "Guiyang"] }, hot: { type: "boolean" } },
  required: ["city", "hot"],
  additionalProperties: false,
};

function fits(text) {
  const value = JSON.parse(text);
  assert.deepEqual(Object.keys(value).sort(), ["city", "hot"]);
  assert(schema.properties.city.enum.includes(value.city) && typeof value.hot === "boolean");
}

async function forms() {
  const response_format = { type: "json_schema", json_schema: { name: "w", schema, strict: true } };
  const answer = await client.chat.completions.create({ model, messages, response_format });
  fits(answer.choices[0].message.content);
  const likely = await client.chat.completions.create({
    model, messages, max_tokens: 3, n: 2, logprobs: true, top_logprobs: 1,
  });
  assert.equal(likely.choices.length, 2);
  assert.equal(likely.choices[1].logprobs.content[0].top_logprobs.length, 1);
}

async function tools() {
  const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
  const asked = { model, messages, tools, tool_choice: "required", parallel_tool_calls: false };
  const answer = await client.chat.completions.create({ ...asked, seed: 1 });
  const [call] = answer.choices[0].message.tool_calls;
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  fits(call.function.arguments);
  const stream = client.chat.completions.stream({ ...asked, seed: 1 });
  const [streamed] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
  assert.equal(streamed.function.arguments, call.function.arguments);
  assert.equal(streamed.function.name, "weather");
}

async function responses() {
  const asked = { model, input: "Say hello.", max_output_tokens: 12, temperature: 0 };
  const answer = await client.responses.create(asked);
  const events = await all(await client.responses.create({ ...asked, stream: true }));
  const deltas = events.filter((event) => event.type === "response.output_text.delta");
  assert.equal(deltas.map((event) => event.delta).join(""), answer.output_text);
  assert(answer.output_text !== "" && answer.usage.total_tokens > 0);
  const tools = [{ type: "function", name: "weather", parameters: schema, strict: true }];
  const called = await client.responses.create({ model, input: "Hot?", tools, tool_choice: "required",
    parallel_tool_calls: false });
  fits(called.output[0].arguments);
}

async function embeddings() {
  const input = ["a cat", "a kitten"];
  const answer = await client.embeddings.create({ model: embedder, input, encoding_format: "float" });
  assert.equal(answer.data.length, 2);
  assert(answer.data[0].embedding.length > 0);
}

async function refusals() {
  const refused = (asked, kind) =>
    assert.rejects(client.chat.completions.create({ model, messages, ...asked }), kind);
  await refused({ model: "nobody's" }, OpenAI.NotFoundError);
  await refused({ n: 9 }, OpenAI.BadRequestError);
  await refused({ messages: [] }, OpenAI.BadRequestError);
}

async function keys() {
  const wrong = new OpenAI({ apiKey: "sk-suanli-wrong", maxRetries: 0 });
  await assert.rejects(wrong.models.retrieve(model), OpenAI.AuthenticationError);
  const slow = new OpenAI({ apiKey: slowKey, maxRetries: 0 });
  const ask = () => slow.chat.completions.create({ model, messages, max_tokens: 1 });
  await ask();
  await ask();
  await assert.rejects(ask(), OpenAI.RateLimitError);
}

const checks = [
  models, whole, streamed, completions, forms, tools, responses, embeddings, refusals, keys,
];
for (const check of checks) {
  await check();
  console.log(`  ${check.name}: as it should be`);
}
