// What all views share: requests, errors, elements.

export const byId = (id) => document.getElementById(id);

/** Return a new element; text is never read as HTML. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

export function showProblem(error) {
  byId("problem").textContent = error ? (error.message ?? String(error)) : "";
}

export function headers(more = {}) {
  const key = byId("key").value;
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** Return the JSON of the answer; throw the server's message if the status is an error. */
export async function request(path, body) {
  const posted = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(path, { ...posted, headers: headers({ "Content-Type": "application/json" }) });
  if (answer.status === 401) byId("key-form").hidden = false;
  if (!answer.ok) throw new Error(await problemOf(answer));
  return answer.json();
}

export async function problemOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

/** Return a function that runs the action once its calls pause, and shows an error of the action. */
export function debounced(action, milliseconds = 150) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => action().then(() => showProblem(), showProblem), milliseconds);
  };
}

/** Let the arrow keys move the focus between the children of a list; Tab reaches one of them (roving tabindex). */
export function rovingFocus(list, onFocus) {
  const items = [...list.children];
  items.forEach((item, place) => { item.tabIndex = place ? -1 : 0; });
  list.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const place = items.indexOf(document.activeElement);
    if (!by || place < 0) return;
    event.preventDefault();
    const next = items[Math.min(Math.max(place + by, 0), items.length - 1)];
    items[place].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  };
  const report = (event) => {
    const place = items.indexOf(event.target.closest("[data-place]"));
    if (place >= 0) onFocus(place);
  };
  list.onpointerover = report;
  items.forEach((item) => { item.onfocus = report; });
}

/** Return text with visible signs for line ends, tabs and control characters. */
export function visible(text) {
  return text.replaceAll("\n", "↵\n").replaceAll("\t", "→\t").replaceAll("\r", "␍").replace(
    /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
