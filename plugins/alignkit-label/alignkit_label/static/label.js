"use strict";
// Texts from the server are only ever set as textContent. A verdict stays in this browser, and is sent again under the
// same id, until the server confirms that it is saved: neither a crash nor a broken connection loses one.

const byId = (id) => document.getElementById(id);
const MOST_WAIT = 5000, UNKNOWN = [401, 403];
let token = "", current = null, order = [], tieNext = false, busy = false;
let secondsBefore = 0, visibleSince = null;

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function button(text, key, act, main = false) {
  const element = make("button", text + " ", {type: "button"});
  if (key) { element.append(make("kbd", key)); element.setAttribute("aria-keyshortcuts", key); }
  if (main) element.className = "main";
  element.addEventListener("click", act);
  return element;
}

// --- the server

async function post(path, body) {
  const headers = {"Content-Type": "application/json", "Authorization": "Bearer " + token};
  const answer = await fetch("api/" + path, {method: "POST", headers, body: JSON.stringify(body)});
  const said = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(said.error || answer.statusText), {status: answer.status});
  return said;
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function untilAnswered(path, body) {
  for (let wait = 250; ; wait = Math.min(2 * wait, MOST_WAIT)) {
    try {
      const said = await post(path, body);
      problem("");
      return said;
    } catch (error) {
      if (error.status && error.status < 500) throw error;
      problem("The server doesn't answer. Your verdict is safe here and will be sent again until it is saved.");
      await pause(wait);
    }
  }
}

// One key for each write, so that two tabs of an annotator don't overwrite each other's.
const PENDING = "alignkit-label-pending:";
const pendingKey = (body) => PENDING + token.slice(0, 8) + ":" + (body.write || "");
const remember = (path, body) => localStorage.setItem(pendingKey(body), JSON.stringify({path, body}));
const forget = (body) => localStorage.removeItem(pendingKey(body));

function remembered() {
  const mine = PENDING + token.slice(0, 8) + ":";
  return Object.keys(localStorage).filter((key) => key.startsWith(mine)).map((key) => JSON.parse(localStorage[key]));
}

async function send(path, body, announcement) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    if (body.write) remember(path, body);
    const said = await untilAnswered(path, body);
    forget(body);
    show(said, announcement);
  } catch (error) {
    if (!UNKNOWN.includes(error.status)) forget(body);
    if (error.status === 409 || error.status === 404) {
      show(await untilAnswered("state", {}), "Not saved: " + error.message + ".");
    } else problem(error.message);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

// --- what is shown

function problem(text) {
  byId("problem").hidden = !text;
  if (byId("problem").textContent !== text) byId("problem").textContent = text;
}

function show(state, announcement) {
  current = state;
  order = [];
  tieNext = false;
  const {done, total, skipped} = state.progress;
  byId("who").textContent = state.annotator;
  byId("count").textContent = `${done} of ${total} done` + (skipped ? `, ${skipped} skipped` : "");
  byId("progress").max = Math.max(total, 1);
  byId("progress").value = done;
  byId("guidelines-text").textContent = state.guidelines;
  byId("show-guidelines").hidden = !state.guidelines;
  byId("item").hidden = !state.item;
  byId("end").hidden = Boolean(state.item);
  const title = state.item ? byId("item-title") : byId("end-title");
  if (state.item) showItem(state.item, `Item ${done + 1} of ${total}`);
  byId("end-actions").replaceChildren(...(state.undo ? [undoButton()] : []));
  restartClock();
  scrollTo(0, 0);
  title.focus({preventScroll: true});
  byId("status").textContent = [announcement, state.item ? title.textContent : "All done."].filter(Boolean).join(" ");
}

function showItem(item, title) {
  byId("item-title").textContent = title;
  byId("prompt").replaceChildren(...item.prompt.map((message) => {
    const shown = make("div", undefined, {class: "message"});
    if (message.role) shown.append(make("strong", message.role));
    shown.append(make("span", message.content));
    return shown;
  }));
  byId("responses").replaceChildren(...item.responses.map(card));
  byId("ranking").hidden = item.responses.length === 2;
  for (const line of document.querySelectorAll("#help .many")) line.hidden = item.responses.length === 2;
  byId("actions").replaceChildren(...actions(item.responses.length));
  showRanking();
}

function card(text, index) {
  const shown = make("article", undefined, {class: "card", "aria-labelledby": `response-${index}`, "data-index": index});
  const two = current.item.responses.length === 2;
  const choice = button(two ? `Response ${index + 1} is better` : `Response ${index + 1} next`, String(index + 1),
    () => choose(index), two);
  shown.append(make("h3", `Response ${index + 1}`, {id: `response-${index}`}),
    make("div", text, {class: "response", tabindex: "0", role: "group", "aria-label": `Text of response ${index + 1}`}),
    choice);
  return shown;
}

function undoButton() { return button("Undo", "U", undo); }

function actions(count) {
  const found = count > 2 ? [Object.assign(button("Save ranking", "Enter", saveRanking, true), {id: "save"})] : [];
  found.push(button("Tie", "T", () => verdict("ranked", current.item.responses.map(() => 0), "Tie saved.")),
    button(count > 2 ? "All bad" : "Both bad", "B", () => verdict("both_bad", null, "Saved as bad.")),
    button("Skip", "S", () => openDialog("skip")));
  if (current.undo) found.push(undoButton());
  return found;
}

// --- verdicts

function verdict(kind, ranks, announcement, reason = "") {
  if (!current?.item) return;
  const write = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  send("annotate", {write, item: current.item.id, verdict: kind, ranks, seconds: seconds(), reason}, announcement);
}

function choose(index) {
  if (!current?.item || index >= current.item.responses.length) return;
  if (current.item.responses.length === 2) {
    verdict("ranked", index === 0 ? [0, 1] : [1, 0], `Response ${index + 1} is better: saved.`);
  } else if (!order.some((place) => place.index === index)) {
    order.push({index, tied: tieNext && order.length > 0});
    tieNext = false;
    showRanking(`Response ${index + 1} placed.`);
  }
}

function ranksOfOrder() {
  const ranks = [];
  let rank = -1;
  for (const place of order) { if (!place.tied) rank += 1; ranks[place.index] = rank; }
  return ranks;
}

function saveRanking() {
  if (current?.item && order.length === current.item.responses.length) verdict("ranked", ranksOfOrder(), "Ranking saved.");
  else byId("status").textContent = "Place every response first.";
}

function undo() { if (current?.undo) send("undo", {write: current.undo}, "Undone."); }

// --- the ranking of three or more

function showRanking(announcement) {
  if (order.length) order[0].tied = false;
  const focused = document.activeElement?.dataset?.focus;
  byId("ranking-empty").hidden = order.length > 0;
  byId("places").replaceChildren(...order.map(placeRow));
  for (const shown of document.querySelectorAll("#responses .card")) {
    shown.classList.toggle("placed", order.some((place) => place.index === Number(shown.dataset.index)));
  }
  const save = byId("save");
  if (save) save.disabled = order.length !== current.item.responses.length;
  if (focused) document.querySelector(`[data-focus="${focused}"]`)?.focus();
  if (announcement) byId("status").textContent = announcement;
}

function placeRow(place, at) {
  const name = `Response ${place.index + 1}`;
  const row = make("li", undefined, {"data-at": at});
  const handle = make("span", "⠿", {class: "handle", "aria-hidden": "true"});
  handle.addEventListener("pointerdown", (event) => drag(event, row, at));
  row.append(handle, make("span", place.tied ? `= ${name}` : `${rankText(at)} ${name}`, {class: "grow"}));
  const add = (text, label, key, act, off) => {
    const element = make("button", text, {type: "button", "aria-label": label, "data-focus": `${key}-${place.index}`});
    element.disabled = off;
    element.addEventListener("click", act);
    row.append(element);
    return element;
  };
  add("↑", `${name} up`, "up", () => move(at, at - 1), at === 0);
  add("↓", `${name} down`, "down", () => move(at, at + 1), at === order.length - 1);
  add("=", `${name} ties with the one above`, "tie", () => { place.tied = !place.tied; showRanking(); }, at === 0)
    .setAttribute("aria-pressed", String(place.tied));
  add("×", `Remove ${name} from the ranking`, "out", () => { order.splice(at, 1); showRanking(`${name} removed.`); }, false);
  return row;
}

function rankText(at) { return `${order.slice(0, at + 1).filter((place) => !place.tied).length}.`; }

function move(from, to) {
  const [place] = order.splice(from, 1);
  order.splice(to, 0, place);
  showRanking(`Response ${place.index + 1} is now ${to + 1} of ${order.length}.`);
}

function drag(event, row, from) {
  event.preventDefault();
  row.classList.add("dragged");
  const rows = [...byId("places").children];
  const target = (y) => rows.filter((other) => {
    const box = other.getBoundingClientRect();
    return other !== row && y > box.top + box.height / 2;
  }).length;
  const end = (done) => {
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", cancel);
    row.classList.remove("dragged");
    if (done) move(from, target(done.clientY));
  };
  const cancel = () => end(null);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", cancel);
}

// --- time: counts only while the page is visible

function restartClock() { secondsBefore = 0; visibleSince = document.hidden ? null : performance.now(); }
function seconds() {
  const running = visibleSince === null ? 0 : (performance.now() - visibleSince) / 1000;
  return Math.round((secondsBefore + running) * 100) / 100;
}
document.addEventListener("visibilitychange", () => {
  secondsBefore = seconds();
  visibleSince = document.hidden ? null : performance.now();
});

// --- dialogs and keys

function openDialog(name) {
  if (name === "skip") { if (!current?.item) return; byId("skip-form").reset(); }
  if (!document.querySelector("dialog[open]")) byId(name).showModal();
}

byId("show-help").addEventListener("click", () => openDialog("help"));
byId("show-guidelines").addEventListener("click", () => openDialog("guidelines"));
byId("skip-cancel").addEventListener("click", () => byId("skip").close());
for (const form of document.querySelectorAll("dialog form")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    form.closest("dialog").close();
    if (form.id !== "skip-form") return;
    const words = byId("skip-words").value.trim(), reason = new FormData(form).get("reason");
    verdict("skip", null, "Skipped.", reason === "other" ? words || "other" : words ? `${reason}: ${words}` : reason);
  });
}

addEventListener("keydown", (event) => {
  const on = event.target;
  const typing = on.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(on.tagName);
  if (typing || event.ctrlKey || event.altKey || event.metaKey || event.repeat || document.querySelector("dialog[open]")) {
    return;
  }
  const key = event.key.toLowerCase(), many = current?.item && current.item.responses.length > 2;
  const acts = {
    t: () => verdict("ranked", current.item?.responses.map(() => 0), "Tie saved."),
    b: () => verdict("both_bad", null, "Saved as bad."),
    s: () => openDialog("skip"), u: undo, "?": () => openDialog("help"),
    g: () => { if (current?.guidelines) openDialog("guidelines"); },
  };
  if (many) {
    acts["="] = () => { tieNext = true; byId("status").textContent = "The next one ties with the one before it."; };
    acts.backspace = () => { order.pop(); showRanking("Removed the last one."); };
    if (on.tagName !== "BUTTON") acts.enter = saveRanking;
  }
  const act = /^[1-9]$/.test(key) ? () => choose(Number(key) - 1) : acts[key];
  if (act && current && !busy) { event.preventDefault(); act(); }
});

// --- start

async function start() {
  token = new URLSearchParams(location.hash.slice(1)).get("token") || sessionStorage.getItem("alignkit-label-token") || "";
  sessionStorage.setItem("alignkit-label-token", token);
  history.replaceState(null, "", location.pathname);
  try {
    for (const {path, body} of remembered()) {
      await untilAnswered(path, body).catch((error) => { if (UNKNOWN.includes(error.status)) throw error; });
      forget(body);
    }
    show(await untilAnswered("state", {}), "");
  } catch (error) { problem(error.message); }
}

addEventListener("hashchange", () => location.reload());
start();
