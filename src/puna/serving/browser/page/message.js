// A message -> elements of the page. Text reaches the page as text only (textContent): a model can write no HTML.

export function element(tag, { text, className, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

// "a\n```python\nb\n```\nc" -> [{text: "a"}, {code: "b", language: "python"}, {text: "c"}]. An open block is code too.
export function splitBlocks(text) {
  const blocks = [];
  let lines = [], language = null, fence = "";
  const close = () => {
    const joined = lines.join("\n");
    if (language !== null) blocks.push({ code: joined, language });
    else if (joined.trim()) blocks.push({ text: joined.replace(/^\n+|\n+$/g, "") });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const marks = /^ {0,3}(`{3,})\s*([^`\s]*)[^`]*$/.exec(line);
    const opens = marks && language === null;
    const closes = marks && language !== null && marks[1].length >= fence.length && !marks[2];
    if (!opens && !closes) {
      lines.push(line);
      continue;
    }
    close();
    language = opens ? marks[2] : null;
    fence = marks[1];
  }
  close();
  return blocks;
}

// Shows `text` in `container`, and leaves the blocks that are there already untouched while the answer grows.
export function renderText(container, text) {
  const blocks = splitBlocks(text);
  blocks.forEach((block, index) => {
    const isCode = "code" in block;
    let shown = container.children[index];
    if (!shown || (shown.tagName === "FIGURE") !== isCode) {
      const fresh = isCode ? codeBlock() : element("p", { dir: "auto" });
      if (shown) shown.replaceWith(fresh);
      else container.append(fresh);
      shown = fresh;
    }
    if (isCode) setText(shown.querySelector("figcaption span"), block.language);
    setText(isCode ? shown.querySelector("code") : shown, isCode ? block.code : block.text);
  });
  while (container.children.length > blocks.length) container.lastElementChild.remove();
}

function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

function codeBlock() {
  const code = element("code");
  const caption = element("figcaption", {}, element("span"), copyButton(() => code.textContent));
  return element("figure", {}, caption, element("pre", { tabIndex: 0 }, code));
}

export function copyButton(read) {
  const button = element("button", { type: "button", className: "quiet", text: "Copy" });
  button.addEventListener("click", async () => {
    const isCopied = await copy(read());
    button.textContent = isCopied ? "Copied" : "Not copied: select the text";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine there is no navigator.clipboard.
    const area = element("textarea", { value: text, className: "visually-hidden" });
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

// A tool call with a field for its result; close(true) ends the typing.
export function toolCall({ name, arguments: json }) {
  const result = element("textarea", { rows: 2, placeholder: "What the tool answered, text or JSON" });
  const title = element("p", { className: "call-name" }, "Calls ", element("code", { text: name }));
  const given = element("pre", { text: pretty(json), tabIndex: 0 });
  const card = element("div", { className: "call" }, title, given, element("label", { text: "Result" }, result));
  return { card, result, close: (isClosed) => (result.readOnly = isClosed) };
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
}
