// The server's OpenAI-compatible API -> models, and answers as they are generated.
// Paths are relative, so the page also works behind a proxy that serves it under a prefix.

export class ApiError extends Error {
  constructor(status, { message = "", code = "" } = {}) {
    super(message || `status ${status}`);
    this.status = status;
    this.code = code;
  }
}

export async function listModels(key) {
  const answer = await request("v1/models", { headers: headers(key) });
  return (await answer.json()).data;
}

// Yields each chunk of a streamed answer. Throws ApiError for a refusal, also for one that comes within the stream.
export async function* streamChat(body, key, signal) {
  const options = { include_usage: true };
  const answer = await request("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: options }),
    signal,
  });
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, chunk.error);
    yield chunk;
  }
  throw new ApiError(0, { code: "cut_off" });
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "unreachable" });
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, body.error);
}

// Server-sent events: the data of each; an event ends with an empty line, wherever the network cut the bytes.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let unread = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (unread + value).split(/\r?\n\r?\n/);
      unread = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "cut_off" });
  } finally {
    reader.cancel().catch(() => {});
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Says what went wrong and what to do about it.
export function explain(error) {
  const said = error.message.trim().replace(/([^.!?])$/, "$1.");
  switch (error.code) {
    case "unreachable":
      return "The server does not answer. Start puna serve again, then send the message once more.";
    case "cut_off":
      return "The connection ended before the answer was complete. Check that puna serve still runs, then ask again.";
    case "invalid_api_key":
      return "This server wants an API key. Enter it under Settings: a line of the file that --api-key-file names.";
    case "model_not_found":
      return `${said} Reload the page for the models that are there now.`;
    case "context_length_exceeded":
      return `Too long for this model: ${said} Start a new chat, shorten the system message, or lower Max tokens.`;
    case "overloaded":
      return `${said} The server is busy. Send the message again in a few seconds.`;
    case "body_too_large":
      return `${said} Start a new chat, or shorten the system message.`;
    default:
      return error instanceof ApiError ? `The server refused: ${said}` : `The page failed: ${said} Reload it.`;
  }
}
