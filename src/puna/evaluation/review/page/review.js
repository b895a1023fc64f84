// One pair at a time: shows the server's state, and sends back what a key or a button says.
// Texts of models and users are hostile: they are written with textContent only.
"use strict";

const VERDICTS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "both", ArrowDown: "neither" };
const SAID = {
  left: "Left only.", right: "Right only.", both: "Both.", neither: "Neither.", skip: "Skipped.", undo: "Undone.",
};
const ACTIONS = { s: "skip", u: "undo", Backspace: "undo", r: "reference", o: "fold", q: "finish", "?": "help" };
const SPEAKERS = { user: "Customer", assistant: "Assistant", tool: "Result of the tool", system: "Instructions" };
const SHOWN_MESSAGES = 4;

const byId = (id) => document.getElementById(id);
let state = null;
let isBusy = false;

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** A block of text in whatever script it is written. */
function textBlock(text, tag = "div") {
  const node = element(tag, "text", text);
  node.dir = "auto";
  return node;
}

/** The fields of an object, one a line; values that are no text as JSON. */
function fields(object) {
  return Object.entries(object)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join("\n");
}

/** What a tool returned: the fields of a JSON object, else the text as it is. */
function readable(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && value.constructor === Object ? fields(value) : text;
  } catch {
    return text;
  }
}

function folded(caption, ...children) {
  const node = element("details");
  node.append(element("summary", "", caption), ...children);
  return node;
}

function body(message) {
  const parts = [];
  const content = message.content || "";
  if (message.role === "tool") parts.push(textBlock(readable(content), "pre"));
  else if (content) parts.push(textBlock(content));
  for (const call of message.tool_calls || []) parts.push(toolCall(call.function));
  if (!parts.length) parts.push(element("p", "empty", "(empty answer)"));
  return parts;
}

function toolCall(call) {
  const node = element("div", "call", "Calls the tool ");
  node.append(element("code", "", call.name));
  node.append(textBlock(fields(call.arguments) || "(no arguments)", "pre"));
  return node;
}

function bubble(message) {
  const node = element("div", `message ${message.role}`);
  node.append(element("h3", "", SPEAKERS[message.role] || message.role), ...body(message));
  return node;
}

function showPair(pair) {
  const system = pair.messages.filter((message) => message.role === "system");
  const spoken = pair.messages.filter((message) => message.role !== "system");
  const earlier = spoken.slice(0, -SHOWN_MESSAGES);
  const setting = system.map((message) => folded("Instructions to the assistant", bubble(message)));
  if (pair.tools.length) {
    const names = pair.tools.map((tool) => tool.function.name).join(", ");
    setting.push(folded(`Tools: ${names}`, textBlock(JSON.stringify(pair.tools, null, 2), "pre")));
  }
  byId("setting").replaceChildren(...setting);
  byId("conversation").replaceChildren(
    ...(earlier.length ? [folded(`Earlier messages: ${earlier.length}`, ...earlier.map(bubble))] : []),
    ...spoken.slice(-SHOWN_MESSAGES).map(bubble));
  const isSingle = pair.answers.length === 1;
  byId("question").textContent = isSingle
    ? "Would you send this answer to your customer?" : "Which would you send to your customer?";
  byId("answers").className = isSingle ? "single" : "";
  byId("answers").replaceChildren(...pair.answers.map((answer, index) => {
    const node = element("section", "answer");
    const caption = element("h3", "", isSingle ? "Answer" : index ? "Right answer" : "Left answer");
    caption.id = `answer-${index}`;
    node.setAttribute("aria-labelledby", caption.id);
    node.append(caption, ...body(answer));
    return node;
  }));
  const expected = pair.reference.flatMap((part) => [element("h3", "", part.caption), textBlock(part.text)]);
  byId("reference").replaceChildren(
    ...(expected.length ? expected : [element("p", "empty", "The evaluation expects no certain text here.")]));
  byId("reference").hidden = true;
  for (const button of document.querySelectorAll("button[data-verdict]")) {
    const verdict = button.dataset.verdict;
    button.hidden = isSingle && (verdict === "left" || verdict === "right");
    if (verdict === "both") button.lastElementChild.textContent = isSingle ? "Yes" : "Both";
    if (verdict === "neither") button.lastElementChild.textContent = isSingle ? "No" : "Neither";
  }
}

function showSummary(summary, isFinished) {
  const rows = [
    ["Judged", summary.judged], ["All answers right", summary.all_right],
    ["One of two right", summary.one_right], ["No answer right", summary.none_right], ["Skipped", summary.skipped]];
  const table = element("table");
  for (const [caption, value] of rows) {
    const row = element("tr");
    row.append(element("th", "", caption), element("td", "", String(value)));
    table.append(row);
  }
  const told = [table];
  if (summary.difference) {
    const [mean, low, high] = summary.difference.map((value) => value.toFixed(1));
    told.push(element("p", "",
      `The two checkpoints lie ${mean} points apart (95 % interval: ${low} to ${high}).` +
      (Number(low) > 0 ? "" : " They may be equally good.")));
  }
  told.push(element("p", "", isFinished
    ? "Every verdict is saved. Which checkpoint is which, and the next command, stand in the terminal. " +
      "You may close this page."
    : "Every verdict is saved. Press Q or Enter to end the review, or U to take the last verdict back."));
  byId("summary-title").textContent = isFinished ? "The review has ended" : "No pair is left";
  byId("figures").replaceChildren(...told);
}

function timeLeft(seconds) {
  const minutes = Math.max(1, Math.round(seconds / 60));
  return `about ${minutes} minute${minutes === 1 ? "" : "s"} left`;
}

function show(next, said) {
  state = next;
  const isOpen = state.pair !== null && !state.is_finished;
  byId("pair").hidden = !isOpen;
  byId("summary").hidden = isOpen;
  byId("keys").hidden = state.is_finished;
  byId("problem").hidden = true;
  const place = `${Math.min(state.place, state.total)} of ${state.total}`;
  byId("progress").textContent = isOpen ? `${place}, ${timeLeft(state.seconds_left)}` : `${state.total} pairs`;
  byId("bar").max = state.total;
  byId("bar").value = state.place - 1;
  for (const button of document.querySelectorAll("#keys button")) {
    const { verdict, action } = button.dataset;
    button.disabled = (!isOpen && (verdict || action === "skip" || action === "reference"))
      || (action === "undo" && !state.can_undo);
  }
  if (isOpen) showPair(state.pair);
  else showSummary(state.summary, state.is_finished);
  byId("status").textContent = `${said ? `${said} ` : ""}${isOpen ? `Pair ${place}.` : ""}`;
  byId(isOpen ? "title" : "summary-title").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  if (isOpen) scrollToAnswers();
}

/** After a long conversation: scroll until the answers end above the keys, or the question stands at the top. */
function scrollToAnswers() {
  const hidden = byId("answers").getBoundingClientRect().bottom + 12 - byId("keys").getBoundingClientRect().top;
  const above = byId("question").getBoundingClientRect().top - document.querySelector("header").offsetHeight - 8;
  window.scrollTo(0, Math.max(0, Math.min(hidden, above)));
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

async function send(action, request = {}, said = "") {
  if (isBusy) return;
  isBusy = true;
  try {
    const response = await fetch(action, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) });
    const answer = await response.json();
    if (response.ok) show(answer, said);
    else if (response.status === 409) {
      isBusy = false;
      await send("state");
      complain(answer.error);
    } else complain(answer.error);
  } catch {
    complain("The review does not answer. Was it ended in the terminal? Saved verdicts are safe; start it again.");
  } finally {
    isBusy = false;
  }
}

function judge(verdict) {
  const isSingle = state?.pair?.answers.length === 1;
  if (!state?.pair || (isSingle && (verdict === "left" || verdict === "right"))) return;
  const single = { both: "Yes.", neither: "No." };
  send("judge", { number: state.number, verdict }, isSingle ? single[verdict] : SAID[verdict]);
}

function act(action) {
  if (action === "help") byId("help").showModal();
  else if (!state) return;
  else if (action === "undo" && state.can_undo) send("undo", {}, SAID.undo);
  else if (action === "finish") send("finish");
  else if (!state.pair) return;
  else if (action === "skip") send("skip", { number: state.number }, SAID.skip);
  else if (action === "reference") toggleReference();
  else if (action === "fold") toggleFolds();
}

function toggleReference() {
  const node = byId("reference");
  node.hidden = !node.hidden;
  byId("status").textContent = node.hidden ? "Expectation hidden." : `Expected: ${node.textContent}`;
  if (!node.hidden) node.scrollIntoView({ block: "nearest" });
}

function toggleFolds() {
  const folds = [...document.querySelectorAll("#pair details")];
  const isOpen = folds.some((fold) => !fold.open);
  for (const fold of folds) fold.open = isOpen;
}

document.addEventListener("keydown", (event) => {
  // A held key judges once; with Alt, Ctrl or Meta it belongs to the browser.
  if (event.repeat || event.altKey || event.ctrlKey || event.metaKey || byId("help").open || state?.is_finished) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in VERDICTS) judge(VERDICTS[key]);
  else if (key in ACTIONS) act(ACTIONS[key]);
  else if (key === "Enter" && state && !state.pair && !event.target.closest("button")) act("finish");
  else return;
  event.preventDefault();
});

byId("keys").addEventListener("click", (event) => {
  const { verdict, action } = event.target.closest("button")?.dataset ?? {};
  if (verdict) judge(verdict);
  else if (action) act(action);
});

send("state");
