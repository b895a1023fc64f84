// OpenAI's Node client: plain, streamed, tools sent back in the forms that the client returns, parsed answers.
import { createRequire } from "node:module";

const require = createRequire(process.cwd() + "/");
const OpenAI = require("openai").default;
const { zodResponseFormat, zodFunction } = require("openai/helpers/zod");
const { z } = require("zod");

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const hello = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Where is order 4711?" },
];
const findOrder = zodFunction({ name: "find_order", parameters: z.object({ number: z.literal("4711") }) });
const common = { model: "tiny", max_tokens: Number(process.env.MAX_TOKENS ?? 24), temperature: 0 };

async function loop(message) {
  const results = (message.tool_calls ?? []).map((call) => ({
    role: "tool",
    tool_call_id: call.id,
    content: [{ type: "text", text: "on its way" }],
  }));
  const rest = results.length ? results : [{ role: "user", content: "Thanks" }];
  await client.chat.completions.create({ ...common, messages: [...hello, message, ...rest], tools: [findOrder] });
}

await client.models.list();
await client.models.retrieve("tiny");
const plain = await client.chat.completions.create({ ...common, messages: hello, n: 1, seed: 7, stop: ["\n\n"] });
await loop(plain.choices[0].message);
const called = await client.chat.completions.create({
  ...common,
  messages: hello,
  tools: [findOrder],
  tool_choice: { type: "function", function: { name: "find_order" } },
});
await loop(called.choices[0].message);
const Hours = z.object({ opens: z.literal("at nine") });
const parsed = await client.chat.completions.parse({
  ...common,
  messages: hello,
  tools: [findOrder],
  tool_choice: "required",
});
await loop(parsed.choices[0].message);
const formed = await client.chat.completions.parse({
  ...common,
  messages: hello,
  response_format: zodResponseFormat(Hours, "hours"),
});
await loop(formed.choices[0].message);
const stream = client.chat.completions.stream({
  ...common,
  messages: hello,
  tools: [findOrder],
  tool_choice: "required",
  stream_options: { include_usage: true },
});
await loop(await stream.finalMessage());
const runner = client.chat.completions.runTools({
  ...common,
  messages: hello,
  tools: [
    {
      type: "function",
      function: {
        name: "find_order",
        parse: JSON.parse,
        description: "Find an order by its number",
        parameters: { type: "object", properties: { number: { type: "string", enum: ["4711"] } } },
        function: () => "on its way",
      },
    },
  ],
}, { maxChatCompletions: 3 });
await runner.done().catch(() => undefined);
await client.completions.create({ model: "tiny", prompt: "We open", max_tokens: 8, logprobs: 2 });
