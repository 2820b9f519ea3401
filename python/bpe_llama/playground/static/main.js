// The frame of the page: views, theme, and which views the server supports.
import { byId, element, request, showProblem } from "./common.js";
import { startChat } from "./chat.js";
import { startModel } from "./model.js";
import { startTokens } from "./tokens.js";

const THEMES = ["system", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const theme = localStorage.getItem("theme") ?? "system";
  const dark = theme === "dark" || (theme === "system" && prefersDark.matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = `Theme: ${theme}`;
}

byId("theme").onclick = () => {
  const place = THEMES.indexOf(localStorage.getItem("theme") ?? "system");
  localStorage.setItem("theme", THEMES[(place + 1) % THEMES.length]);
  applyTheme();
};
byId("key-form").onsubmit = (event) => event.preventDefault();
prefersDark.onchange = applyTheme;
applyTheme();

const tabs = [...document.querySelectorAll('[role="tab"]')];

function select(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", String(chosen));
    each.tabIndex = chosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  showProblem();
  tab.dispatchEvent(new Event("shown"));
}

for (const tab of tabs) {
  tab.onclick = () => select(tab);
  tab.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const shown = tabs.filter((each) => !each.hidden);
    const next = shown[(shown.indexOf(tab) + by + shown.length) % shown.length];
    next.focus();
    select(next);
  };
}

async function start() {
  const info = await request("playground/info");
  showProblem();
  startTokens(info);
  if (info.models.length) {
    for (const id of ["chat-model", "model-name"]) {
      byId(id).append(...info.models.map((name) => element("option", { value: name, textContent: name })));
    }
    byId("tab-chat").hidden = byId("tab-model").hidden = byId("key-form").hidden = false;
    startChat(info);
    startModel();
  }
  document.body.dataset.ready = "true";
}

byId("key").onchange = () => { if (!document.body.dataset.ready) start().catch(showProblem); };
start().catch(showProblem);
