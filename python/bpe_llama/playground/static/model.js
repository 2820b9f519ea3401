// The view of the model: its parameters, its memory, attention weights of a sentence.
import { byId, debounced, element, request, visible } from "./common.js";

let drawn; // the attention weights on the canvas

export function startModel() {
  byId("tab-model").addEventListener("shown", debounced(describeModel, 0));
  byId("model-name").onchange = debounced(describeModel, 0);
  byId("attend").onclick = debounced(attend, 0);
  byId("sentence").onkeydown = (event) => { if (event.key === "Enter") byId("attend").click(); };
  byId("map").onpointermove = point;
}

const name = () => byId("model-name").value;

async function describeModel() {
  const found = await request(`playground/model?model=${encodeURIComponent(name())}`);
  byId("model-figures").replaceChildren(...Object.entries(found.figures).flatMap(([title, value]) => [
    element("dt", { textContent: title }), element("dd", { textContent: String(value) })]));
  byId("layers").querySelector("tbody").replaceChildren(...found.parameters.map((row) => element("tr", {},
    element("td", { textContent: row.name }), element("td", { textContent: row.shape.join(" × ") }),
    element("td", { textContent: row.dtype }), element("td", { className: "number", textContent: row.parameters.toLocaleString() }),
    element("td", { className: "number", textContent: row.bytes.toLocaleString() }))));
  byId("layer").max = found.layers - 1;
  byId("head").max = found.heads - 1;
}

async function attend() {
  const asked = { model: name(), text: byId("sentence").value, layer: Number(byId("layer").value), head: Number(byId("head").value) };
  drawn = await request("playground/attention", asked);
  const { tokens, weights } = drawn;
  const label = 110;
  const cell = Math.max(Math.min(Math.floor((Math.min(innerWidth, 900) - label - 60) / tokens.length), 32), 6);
  const canvas = byId("map");
  canvas.width = label + cell * tokens.length + 4;
  canvas.height = label + cell * tokens.length + 4;
  canvas.setAttribute("aria-label", `Attention weights of layer ${asked.layer}, head ${asked.head}: ${strongest()}`);
  drawn.label = label;
  drawn.cell = cell;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  context.fillStyle = style.getPropertyValue("--text");
  context.font = `${Math.min(cell, 13)}px monospace`;
  tokens.forEach((token, place) => {
    const text = visible(token).trim().slice(0, 12) || "·";
    context.textAlign = "right";
    context.fillText(text, label - 6, label + cell * (place + 0.7));
    context.save();
    context.translate(label + cell * (place + 0.7), label - 6);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(text, 0, 0);
    context.restore();
  });
  context.fillStyle = style.getPropertyValue("--accent");
  weights.forEach((row, to) => row.forEach((weight, from) => {
    context.globalAlpha = Math.min(weight, 1);
    context.fillRect(label + cell * from, label + cell * to, cell - 1, cell - 1);
  }));
  context.globalAlpha = 1;
  byId("map-detail").textContent = `Each row attends to the columns. ${strongest()}`;
}

/** Return in words which earlier token the last one attends to most. */
function strongest() {
  const last = drawn.weights.at(-1);
  const most = last.indexOf(Math.max(...last));
  return `${JSON.stringify(drawn.tokens.at(-1))} attends most to ${JSON.stringify(drawn.tokens[most])} (${(100 * last[most]).toFixed(0)} %).`;
}

function point(event) {
  if (!drawn) return;
  const box = byId("map").getBoundingClientRect();
  const scale = byId("map").width / box.width;
  const from = Math.floor(((event.clientX - box.left) * scale - drawn.label) / drawn.cell);
  const to = Math.floor(((event.clientY - box.top) * scale - drawn.label) / drawn.cell);
  const weight = drawn.weights[to]?.[from];
  if (weight === undefined) return;
  byId("map-detail").textContent = `${JSON.stringify(drawn.tokens[to])} attends to ${JSON.stringify(drawn.tokens[from])}: ${(100 * weight).toFixed(1)} %`;
}

