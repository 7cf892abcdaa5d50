// Follows the report: one small request a second, none while the tab is hidden, and a clear word when the proxy
// does not answer.
"use strict";

const state = document.getElementById("state");
const body = document.getElementById("report");
const cells = new Map();

function shown(value) {
  if (typeof value !== "number") return value;
  return value.toLocaleString("en", { maximumFractionDigits: 1 });
}

function cell(name) {
  if (!cells.has(name)) {
    const row = body.insertRow();
    const heading = document.createElement("th");
    heading.scope = "row";
    heading.textContent = name;
    row.append(heading);
    cells.set(name, row.insertCell());
  }
  return cells.get(name);
}

function say(text, lost) {
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("lost", lost);
}

async function update() {
  try {
    const answer = await fetch("stats", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    for (const [name, value] of Object.entries(await answer.json())) cell(name).textContent = shown(value);
    say("Live, updated each second.", false);
  } catch {
    say("The proxy does not answer. The figures below are the last that were received.", true);
  }
}

async function follow() {
  if (!document.hidden) await update();
  setTimeout(follow, 1000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
follow();
