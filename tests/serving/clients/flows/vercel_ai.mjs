// Vercel's AI SDK with its OpenAI-compatible provider: text, streams, a tool with its result, objects by schema.
import { createRequire } from "node:module";

const require = createRequire(process.cwd() + "/");
const { generateText, streamText, tool, Output, stepCountIs, isStepCount } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { z } = require("zod");

const provider = createOpenAICompatible({
  name: "puna",
  baseURL: process.argv[2],
  apiKey: "none",
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const model = provider("tiny");
const findOrder = tool({
  description: "Find an order",
  inputSchema: z.object({ number: z.literal("4711") }),
  execute: async () => ({ state: "on its way" }),
});
const common = { model, maxOutputTokens: 24, temperature: 0, maxRetries: 0 };
await generateText({ ...common, system: "Be brief.", prompt: "Where is order 4711?", seed: 7 });
for await (const part of streamText({ ...common, prompt: "Where is order 4711?" }).textStream) part;
await generateText({
  ...common,
  prompt: "Where is order 4711?",
  tools: { find_order: findOrder },
  stopWhen: (stepCountIs ?? isStepCount)(2),
});
await generateText({
  ...common,
  prompt: "When do you open?",
  output: Output.object({ schema: z.object({ opens: z.literal("at nine") }) }),
});
