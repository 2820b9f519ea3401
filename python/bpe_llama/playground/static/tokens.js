// The view of tokens: one or two tokenizers on a text, merges step by step, a conversation.
import { byId, debounced, element, headers, problemOf, request, showProblem, visible, rovingFocus } from "./common.js";

const COLOURS = 5;
let info;

export function startTokens(given) {
  info = given;
  for (const name of Object.keys(info.tokenizers)) addOption(name);
  const names = Object.keys(info.tokenizers);
  if (names.length > 1) byId("tokenizer-b").value = names[1];
  const refresh = debounced(showTokens);
  for (const id of ["text", "tokenizer-a", "tokenizer-b", "special", "template", "table"]) byId(id).oninput = refresh;
  byId("merges").ontoggle = refresh;
  byId("file").onchange = () => addFile(byId("file").files[0]);
  acceptDrops();
  startMerges();
  startConversation();
  refresh();
}

function addOption(name) {
  for (const id of ["tokenizer-a", "tokenizer-b"]) {
    byId(id).append(element("option", { value: name, textContent: name }));
  }
}

async function showTokens() {
  const text = byId("text").value;
  const shared = { text, special: byId("special").checked, template: byId("template").checked };
  const asked = [byId("tokenizer-a").value, byId("tokenizer-b").value].filter(Boolean);
  const found = await Promise.all(asked.map((tokenizer) => request("playground/tokens", { ...shared, tokenizer })));
  if (text !== byId("text").value) return; // a later request is on its way
  const other = found[1] && found[1].count;
  draw(byId("output-a"), asked[0], found[0], other);
  byId("output-b").hidden = found.length < 2;
  if (found.length > 1) draw(byId("output-b"), asked[1], found[1], found[0].count);
  if (byId("merges").open) await loadMerges();
}

export function draw(output, name, found, other) {
  const rate = found.count ? `, ${(found.bytes / found.count).toFixed(2)} bytes a token` : "";
  const compared = other ? difference(found.count / other - 1) : "";
  const count = element("p", { className: "count", role: "status" }, element("strong", { textContent: found.count.toLocaleString() }),
    ` tokens, ${found.characters.toLocaleString()} characters, ${found.bytes.toLocaleString()} bytes${rate}${compared}`);
  const shown = byId("table").checked ? table(found.tokens) : spans(found.tokens);
  const rest = found.count - found.tokens.length;
  output.replaceChildren(element("h3", { textContent: name }), count, shown);
  if (rest) output.append(element("p", { textContent: `${rest.toLocaleString()} more tokens are counted, not shown` }));
}

function difference(share) {
  if (!share) return ", as many as the other";
  return `, ${Math.abs(100 * share).toFixed(1)} % ${share < 0 ? "fewer" : "more"} than the other`;
}

function spans(tokens) {
  const list = element("div", { className: "tokens" });
  list.setAttribute("role", "list");
  list.append(...tokens.map((token, place) => {
    const span = element("span", { className: `token token-${place % COLOURS}`, textContent: visible(token.text) });
    span.classList.toggle("special", token.special);
    span.dataset.place = place;
    span.setAttribute("role", "listitem");
    return span;
  }));
  rovingFocus(list, (place) => { byId("detail").textContent = describe(tokens[place], place); });
  return list;
}

function describe(token, place) {
  const where = token.start === null ? "no characters" : `characters ${token.start}–${token.end}`;
  return `token ${place}: id ${token.id}, bytes ${hex(token.bytes)}, ${where}${token.special ? ", special" : ""}`;
}

const hex = (bytes) => bytes.replace(/(..)(?=.)/g, "$1 ");

function table(tokens) {
  const titles = ["position", "id", "text", "bytes", "characters"];
  const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col", textContent: title })));
  const rows = tokens.map((token, place) => {
    const where = token.start === null ? "" : `${token.start}–${token.end}`;
    const cells = [place, token.id, visible(token.text), hex(token.bytes), where];
    return element("tr", {}, ...cells.map((cell) => element("td", { textContent: cell })));
  });
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}

async function addFile(file) {
  if (!file) return;
  showProblem();
  try {
    const path = `playground/tokenizers?name=${encodeURIComponent(file.name)}`;
    const answer = await fetch(path, { method: "POST", body: file,
      headers: headers({ "Content-Type": "application/octet-stream" }) });
    if (!answer.ok) throw new Error(`${file.name}: ${await problemOf(answer)}`);
    const { name, ...described } = await answer.json();
    if (!(name in info.tokenizers)) addOption(name);
    info.tokenizers[name] = described;
    byId("tokenizer-b").value = name;
    await showTokens();
  } catch (error) {
    showProblem(error);
  }
}

function acceptDrops() {
  const target = document.body;
  target.ondragover = (event) => { event.preventDefault(); byId("drop").classList.add("over"); };
  target.ondragleave = () => byId("drop").classList.remove("over");
  target.ondrop = (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    addFile(event.dataTransfer.files[0]);
  };
}

// ---- merges ----

let pieces = [];
let piece = 0;
let step = 0;
let timer;

function startMerges() {
  byId("step").onclick = () => move(1);
  byId("back").onclick = () => move(-1);
  byId("play").onclick = () => (timer ? pause() : play());
}

async function loadMerges() {
  pause();
  const text = [...byId("text").value].slice(0, 2000).join(""); // by characters: half a surrogate pair is refused
  ({ pieces } = await request("playground/merges", { text, tokenizer: byId("tokenizer-a").value }));
  byId("pieces").replaceChildren(...pieces.map((each, place) => {
    const button = element("button", { type: "button", textContent: visible(each.text).replaceAll(" ", "·") });
    button.onclick = () => { piece = place; step = 0; drawMerges(); };
    return button;
  }));
  piece = Math.max(pieces.findIndex((each) => each.steps.length > 3), 0);
  step = 0;
  drawMerges();
}

function move(by) {
  const last = (pieces[piece]?.steps.length ?? 1) - 1;
  step = Math.min(Math.max(step + by, 0), Math.max(last, 0));
  if (step >= last) pause();
  drawMerges();
}

function play() {
  if (step >= (pieces[piece]?.steps.length ?? 1) - 1) step = 0;
  timer = setInterval(() => move(1), 700);
  byId("play").textContent = "Pause";
  drawMerges();
}

function pause() {
  clearInterval(timer);
  timer = undefined;
  byId("play").textContent = "Play";
}

function drawMerges() {
  [...byId("pieces").children].forEach((button, place) => button.setAttribute("aria-pressed", String(place === piece)));
  const steps = pieces[piece]?.steps ?? [];
  const tooLong = pieces.length && !steps.length;
  byId("merge-place").textContent = tooLong ? "this pre-token, or the text before it, is too long to play" : `merge ${step} of ${Math.max(steps.length - 1, 0)}`;
  byId("merge-steps").replaceChildren(...steps.slice(0, step + 1).map((tokens) => {
    const row = element("div", {}, ...tokens.map((token, place) => element("span", {
      className: `token token-${place % COLOURS}`, textContent: visible(token.text).replaceAll(" ", "·"), title: `id ${token.id}` })));
    row.setAttribute("role", "listitem");
    return row;
  }));
}

// ---- a conversation ----

function startConversation() {
  addMessage("user", "What is a token?");
  byId("add-message").onclick = () => {
    const last = byId("messages").lastElementChild?.querySelector("select").value;
    addMessage(last === "user" ? "assistant" : "user", "");
  };
  byId("show-chat").onclick = debounced(showChat, 0);
}

function addMessage(role, content) {
  const select = element("select", { ariaLabel: "Role" });
  select.append(...["system", "user", "assistant", "tool"].map((name) => element("option", { value: name, textContent: name })));
  select.value = role;
  const text = element("textarea", { rows: 2, value: content, ariaLabel: "Content" });
  const remove = element("button", { type: "button", textContent: "Remove" });
  const row = element("div", { className: "message-row" }, select, text, remove);
  remove.onclick = () => row.remove();
  byId("messages").append(row);
}

async function showChat() {
  const messages = [...byId("messages").children].map((row) => (
    { role: row.querySelector("select").value, content: row.querySelector("textarea").value }));
  const tokenizer = byId("tokenizer-a").value;
  draw(byId("chat-output"), tokenizer, await request("playground/chat", { tokenizer, messages, answer: byId("answer").checked }));
}
