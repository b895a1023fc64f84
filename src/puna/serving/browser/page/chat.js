// The chat page: what a person types -> requests to the API, and the answer as it comes.
// The conversation lives in this tab only. Settings and the key are kept in sessionStorage until the tab is closed.

import { explain, listModels, streamChat } from "./api.js";
import { copyButton, element, renderText, toolCall } from "./message.js";

const at = (id) => document.getElementById(id);
const KEPT = ["key", "system", "temperature", "max-tokens", "tools"];
const HELP = at("status").textContent;

let chat = newConversation();
let running = null; // The AbortController of the request in progress.

// `messages` go with the next request, after the system message; `calls` of the last answer wait for results.
function newConversation() {
  return { messages: [], calls: [] };
}

// Returns whether there is a model to ask.
async function loadModels() {
  try {
    const models = await listModels(at("key").value);
    at("model").replaceChildren(...models.map(({ id }) => element("option", { text: id, value: id })));
    at("model-choice").hidden = models.length < 2;
    at("title").textContent = document.title = models[0]?.id ?? "Puna";
    at("notice").textContent = models[0]?.notice ?? "";
    showError(models.length > 0 ? "" : "This key is for no model that is served here. Ask for another key.");
    return models.length > 0;
  } catch (error) {
    fail(error);
    return false;
  }
}

function readTools() {
  const text = at("tools").value.trim();
  if (!text) return {};
  try {
    const tools = JSON.parse(text);
    if (Array.isArray(tools)) return { tools };
  } catch {
    // Said below.
  }
  throw new Error("Tools is no JSON list. Correct or empty it under Settings.");
}

function readSettings(messages) {
  for (const id of ["temperature", "max-tokens"]) {
    const { validity, labels, validationMessage } = at(id);
    const isWrong = validity.badInput || validity.rangeUnderflow || validity.rangeOverflow;
    if (isWrong) throw new Error(`${labels[0].textContent}: ${validationMessage}`);
  }
  const system = at("system").value.trim();
  return {
    model: at("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    ...(at("temperature").value && { temperature: Number(at("temperature").value) }),
    ...(at("max-tokens").value && { max_tokens: Number(at("max-tokens").value) }),
    ...readTools(),
  };
}

// Adds `added` to the conversation and streams the answer. Returns false, and takes `added` back, if nothing comes.
async function ask(added) {
  const mine = chat;
  let body;
  try {
    body = readSettings([...mine.messages, ...added]);
  } catch (error) {
    showError(error.message);
    return false;
  }
  showError("");
  mine.calls.forEach(({ close }) => close(true));
  const answer = startAnswer();
  const controller = setRunning(new AbortController());
  try {
    await receive(body, answer, controller.signal);
  } catch (error) {
    answer.failed = error.name === "AbortError" ? "stopped" : "incomplete";
    if (error.name !== "AbortError") fail(error);
  }
  if (mine !== chat) return true; // A new chat has begun, and its page is clear.
  setRunning(null);
  return endAnswer(answer, added);
}

function startAnswer() {
  const text = element("div", { className: "text" });
  const foot = element("p", { className: "foot", text: "…" });
  const article = addMessage("assistant", at("model").value, text, foot);
  article.ariaBusy = "true";
  return { article, text, foot, content: "", calls: [], failed: "", finish: "", usage: null, frame: 0 };
}

async function receive(body, answer, signal) {
  answer.sent = performance.now();
  for await (const chunk of streamChat(body, at("key").value, signal)) {
    answer.usage = chunk.usage ?? answer.usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    if (choice.delta.content || choice.delta.tool_calls) answer.first ??= performance.now();
    answer.content += choice.delta.content ?? "";
    answer.calls.push(...(choice.delta.tool_calls ?? []));
    answer.finish = choice.finish_reason ?? answer.finish;
    if (choice.finish_reason) answer.last = performance.now();
    answer.frame ||= requestAnimationFrame(() => draw(answer));
  }
}

function draw(answer) {
  answer.frame = 0;
  followEnd(() => renderText(answer.text, answer.content));
}

function endAnswer(answer, added) {
  cancelAnimationFrame(answer.frame);
  draw(answer);
  answer.article.ariaBusy = "false";
  if (answer.failed && !answer.content) {
    answer.article.remove();
    chat.calls.forEach(({ close }) => close(false));
    if (answer.failed === "stopped") at("status").textContent = "Stopped before the first word.";
    return false;
  }
  const calls = answer.calls.map(({ index, ...call }) => call);
  const message = { role: "assistant", content: answer.content, ...(calls.length && { tool_calls: calls }) };
  chat.messages.push(...added, message);
  answer.foot.textContent = footLine(answer);
  if (answer.content) answer.foot.append(" ", copyButton(() => answer.content));
  at("status").textContent = answer.failed ? `Answer ${answer.failed}.` : "Answer complete.";
  followEnd(() => showCalls(answer.article, calls));
  return true;
}

function footLine({ content, calls, usage, sent, first, last, finish, failed }) {
  const parts = [];
  if (failed) parts.push(failed);
  else if (!content && !calls.length) parts.push("an empty answer");
  if (finish === "length") parts.push("cut off by Max tokens, or by the end of the context");
  if (usage) {
    const count = usage.completion_tokens, seconds = (last - first) / 1000, speed = (count - 1) / seconds;
    parts.push(`${count} ${count === 1 ? "token" : "tokens"}`);
    if (count > 2 && seconds > 0.005) parts.push(`${speed.toFixed(speed < 100 ? 1 : 0)} tokens/s`);
    parts.push(`first after ${((first ?? last) / 1000 - sent / 1000).toFixed(2)} s`);
  }
  return parts.join(" · ");
}

function showCalls(article, calls) {
  chat.calls = calls.map(({ id, function: called }) => ({ id, ...toolCall(called) }));
  if (!calls.length) return;
  const button = element("button", { type: "button", text: calls.length > 1 ? "Send results" : "Send result" });
  const given = chat.calls;
  button.addEventListener("click", () => {
    if (!running) ask(given.map(({ id, result }) => ({ role: "tool", tool_call_id: id, content: result.value })));
  });
  article.append(...given.map(({ card }) => card), button);
  given[0].result.focus();
}

function addMessage(role, name, ...children) {
  const article = element("article", { className: role }, element("h2", { text: name }), ...children);
  followEnd(() => at("log").append(article));
  return article;
}

// Changes the log, and keeps its end in view where it was in view.
function followEnd(change) {
  const log = at("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  change();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

async function sendMessage() {
  const field = at("message"), content = field.value.trim(), mine = chat;
  if (!content || running) return;
  if (!at("model").value && !(await loadModels())) return;
  const text = element("div", { className: "text" });
  renderText(text, content);
  const article = addMessage("user", "You", text);
  at("log").scrollTop = at("log").scrollHeight;
  field.value = "";
  openSettings(false);
  if (!(await ask([{ role: "user", content }])) && mine === chat) {
    article.remove();
    field.value ||= content; // To be sent again, or changed.
  }
}

function setRunning(controller) {
  running = controller;
  at("send").hidden = running !== null;
  at("stop").hidden = running === null;
  if (running) at("status").textContent = "The model answers …";
  return controller;
}

function fail(error) {
  showError(explain(error));
  if (error.code === "invalid_api_key") {
    at("key-field").hidden = false;
    openSettings(true);
    at("key").focus();
  }
}

function showError(text) {
  at("error").hidden = !text;
  at("error").textContent = text;
  if (text) at("status").textContent = HELP;
}

function openSettings(isOpen) {
  document.body.classList.toggle("settings-open", isOpen);
  at("toggle-settings").ariaExpanded = String(isOpen);
}

function newChat() {
  running?.abort();
  setRunning(null);
  chat = newConversation();
  at("log").replaceChildren();
  at("status").textContent = HELP;
  showError("");
  at("message").focus();
}

// A browser that blocks cookies blocks sessionStorage too: then a reload forgets the settings.
function tabStorage() {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

for (const id of KEPT) {
  at(id).value = tabStorage()?.getItem(id) ?? "";
  at(id).addEventListener("change", () => tabStorage()?.setItem(id, at(id).value));
}
at("key-field").hidden = !at("key").value;
at("key").addEventListener("change", loadModels);
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  sendMessage();
});
at("message").addEventListener("keydown", (event) => {
  // NOTE: while an input method composes a word (Hindi, Japanese), Enter belongs to it; Safari says so by key code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  sendMessage();
});
at("stop").addEventListener("click", () => running?.abort());
at("new-chat").addEventListener("click", newChat);
at("toggle-settings").addEventListener("click", () => openSettings(!document.body.classList.contains("settings-open")));
loadModels().then(() => at("error").hidden && at("message").focus());
