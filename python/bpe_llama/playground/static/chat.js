// The view of a conversation with the model: streaming, stop, regenerate, probabilities of tokens.
import { byId, element, headers, problemOf, showProblem, visible, rovingFocus } from "./common.js";

const SLIDERS = ["temperature", "top_p", "min_p", "max_tokens"];
const ALTERNATIVES = 5;
let turns = []; // {role, content}
let running; // the AbortController of the answer that streams

export function startChat() {
  for (const id of SLIDERS) {
    const slider = byId(id);
    const show = () => { slider.nextElementSibling.textContent = slider.value; };
    slider.oninput = show;
    show();
  }
  byId("say").onsubmit = (event) => { event.preventDefault(); send(); };
  byId("message").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  };
  byId("stop").onclick = () => running?.abort();
  byId("regenerate").onclick = () => {
    if (running || turns.at(-1)?.role !== "assistant") return;
    turns.pop();
    byId("log").lastElementChild.remove();
    byId("seed").value = Number(byId("seed").value) + 1;
    answer();
  };
  byId("clear").onclick = () => {
    running?.abort();
    turns = [];
    byId("log").replaceChildren();
    byId("regenerate").disabled = true;
    byId("chat-status").textContent = "";
  };
}

function send() {
  const content = byId("message").value;
  if (running || !content.trim()) return;
  byId("message").value = "";
  turns.push({ role: "user", content });
  addTurn("You").append(content);
  answer();
}

function addTurn(name) {
  const body = element("div");
  byId("log").append(element("article", {}, element("h3", { textContent: name }), body));
  byId("log").scrollTop = byId("log").scrollHeight;
  return body;
}

async function answer() {
  showProblem();
  const history = turns;
  const model = byId("chat-model").value;
  const body = addTurn(model);
  const words = [];
  const turn = { role: "assistant", content: "" };
  running = new AbortController();
  controls();
  const start = performance.now();
  let usage;
  try {
    const system = byId("system").value.trim();
    const messages = system ? [{ role: "system", content: system }, ...turns] : turns;
    const sampling = Object.fromEntries(SLIDERS.map((id) => [id, Number(byId(id).value)]));
    const asked = { model, messages, ...sampling, seed: Number(byId("seed").value), stream: true,
      stream_options: { include_usage: true }, logprobs: true, top_logprobs: ALTERNATIVES };
    const response = await fetch("v1/chat/completions", { method: "POST", body: JSON.stringify(asked),
      headers: headers({ "Content-Type": "application/json" }), signal: running.signal });
    if (!response.ok) throw new Error(await problemOf(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      turn.content += choice.delta.content ?? "";
      addWords(body, words, choice);
      byId("log").scrollTop = byId("log").scrollHeight;
    }
    byId("chat-status").textContent = rate(usage, start);
  } catch (error) {
    if (error.name === "AbortError") byId("chat-status").textContent = "stopped";
    else showProblem(error);
  } finally {
    running = undefined;
    if (turns === history) turns.push(turn);
    if (words.length) rovingFocus(body, (place) => { byId("chat-detail").textContent = describe(words[place]); });
    controls();
  }
}

function controls() {
  byId("send").disabled = byId("regenerate").disabled = Boolean(running);
  byId("stop").disabled = !running;
  if (!turns.length) byId("regenerate").disabled = true;
}

function rate(usage, start) {
  if (!usage) return "";
  const seconds = (performance.now() - start) / 1000;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  return `${usage.prompt_tokens} prompt tokens (${cached} from the cache), ${usage.completion_tokens} new tokens, `
    + `${(usage.completion_tokens / seconds).toFixed(1)} a second`;
}

/** Yield the JSON of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

/** Add the tokens of one event. If one of them ends inside a character, all text goes to the last one. */
function addWords(body, words, choice) {
  const text = choice.delta.content ?? "";
  const tokens = choice.logprobs?.content ?? [];
  if (!tokens.length) {
    if (text) body.append(text);
    return;
  }
  const whole = tokens.map((token) => token.token).join("") === text;
  tokens.forEach((token, place) => {
    const shown = whole ? token.token : (place === tokens.length - 1 ? text : "");
    if (!shown) return;
    const chance = Math.exp(token.logprob);
    const word = element("span", { className: "word", textContent: shown });
    word.classList.toggle("even", chance < 0.5 && chance >= 0.1);
    word.classList.toggle("unlikely", chance < 0.1);
    word.dataset.place = words.length;
    words.push(token);
    body.append(word);
  });
  rovingFocus(body, (place) => { byId("chat-detail").textContent = describe(words[place]); });
}

function describe(token) {
  const percent = (logprob) => `${(100 * Math.exp(logprob)).toFixed(1)} %`;
  const name = (each) => JSON.stringify(visible(each.token));
  const others = token.top_logprobs.map((each) => `${name(each)} ${percent(each.logprob)}`).join(", ");
  return `${name(token)} ${percent(token.logprob)}; most likely: ${others}`;
}
