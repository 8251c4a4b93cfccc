// Drives OpenAI's client for Node: prints what it gets, as one line of JSON.

import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "no key", maxRetries: 0 });
const messages = [{ role: "user", content: "say one two" }];

const names = [];
for await (const each of client.models.list()) names.push(each.id);

const whole = await client.chat.completions.create({ model, messages });

let streamed = "";
let usage;
const stream = await client.chat.completions.create({
  model,
  messages,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}

const embedded = await client.embeddings.create({ model, input: ["a", "bb"] });

const refused = await client.chat.completions
  .create({ model, messages, temperature: 3 })
  .catch((error) => ({ status: error.status, param: error.param, code: error.code }));

console.log(
  JSON.stringify({
    names,
    whole: whole.choices[0].message.content,
    streamed,
    tokens: usage.completion_tokens,
    vectors: embedded.data.map((each) => [...each.embedding].slice(0, 2)),
    refused,
  }),
);
