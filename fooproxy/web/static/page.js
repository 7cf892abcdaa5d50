// Keeps the page up to date: one small request per second, none while the tab is hidden, and never two at once.  Text
// in answers is untrusted and never becomes markup.  If the proxy does not answer, the page says so and marks its
// figures as old.

import { Histogram, SECONDS, TimeChart } from "./chart.js";
import * as format from "./format.js";
import { showOptions } from "./options.js";
import { Sessions } from "./sessions.js";
import { Upstreams } from "./upstreams.js";

const PATIENCE = 5000;
const { age, count, latency, rate, short, text, words } = format;
const root = document.documentElement;
const at = (id) => document.getElementById(id);

// The word and the icon of each state.
const STATES = {
  ok: ["OK", "M12 1a11 11 0 1 0 0 22a11 11 0 0 0 0-22zM5.6 12.6l1.8-1.8 3 3 6.2-6.2 1.8 1.8-8 8z"],
  degraded: ["Degraded", "M12 1.5 23.5 22H.5zM10.8 8.5h2.4v7h-2.4zM10.8 17h2.4v2.4h-2.4z"],
  draining: ["Draining", "M12 1a11 11 0 1 0 0 22a11 11 0 0 0 0-22zM10.8 5v8l-3-3-1.7 1.7L12 17.6l5.9-5.9L16.2 10l-3 3V5z"],
  "not-ready": ["Not ready", "M7.5 1h9L23 7.5v9L16.5 23h-9L1 16.5v-9zM5.5 10.6h13v2.8h-13z"],
  lost: ["Lost", "M4.5 2 12 9.5 19.5 2 22 4.5 14.5 12 22 19.5 19.5 22 12 14.5 4.5 22 2 19.5 9.5 12 2 4.5z"],
  paused: ["Paused", "M5 3h5v18H5zM14 3h5v18h-5z"],
};

// The last 15 minutes, one value per second; null for unknown seconds.
class History {
  series = { requests: [], responses: [], naks: [], p50: [], p99: [], sessions: [] };
  last = null;

  // A restarted proxy numbers its seconds anew, so the clock tells how many have passed; it may resend known ones.
  add(entries, restarted) {
    const fresh = entries.requests.length;
    const numbered = entries.last - (this.last ?? entries.last - fresh);
    const passed = restarted ? Math.round(entries.time - this.time) : numbered;
    const missing = new Array(Math.min(SECONDS, Math.max(0, passed - fresh))).fill(null);
    for (const [name, values] of Object.entries(this.series)) {
      const kept = values.slice(0, Math.max(0, values.length - Math.max(0, fresh - passed)));
      this.series[name] = [...kept, ...missing, ...entries[name]].slice(-SECONDS);
    }
    this.last = entries.last;
    this.time = entries.time;
  }

  sum(name, seconds) {
    return this.series[name].slice(-seconds).reduce((sum, value) => sum + value, 0);
  }
}

const past = new History();
const sessions = new Sessions(() => follow(true));
const upstreams = new Upstreams();
const charts = {
  requests: new TimeChart("requests-chart", "Requests per second", ["requests"], rate, short),
  replies: new TimeChart("replies-chart", "Replies per second", ["replies", "NAK"], rate, short),
  sessions: new TimeChart("sessions-chart", "Open sessions", ["sessions"], count, short),
  latency: new TimeChart("latency-chart", "Latency", ["p50", "p99"], latency),
};
const spread = new Histogram("spread-chart", "Latency of the last 10 seconds");
// Pointing at one chart shows the same second on all charts.
const pointAll = (place) => Object.values(charts).forEach((chart) => chart.point(place));
for (const chart of Object.values(charts)) chart.onpoint = pointAll;

const figures = document.querySelectorAll("[data-show]");
let answered = null; // When the last answer arrived, and when the proxy that gave it was started.
let started = null;
let optionsOf = null; // When the proxy whose options are shown was started; while it runs, they do not change.
let busy = false;
let again = false;
let paused = false;
let timer;

const clock = () => new Date(answered).toLocaleTimeString("en-GB");

// Writes a text if it has changed.  In large figures, the unit (after the no-break space) gets its own small element.
function write(element, shown) {
  if (element.shown === shown) return;
  element.shown = shown;
  const [number, unit] = element.parentNode.classList.contains("big") ? shown.split("\u00a0") : [shown];
  element.textContent = number;
  if (!unit) return;
  const small = document.createElement("small");
  small.textContent = `\u00a0${unit}`;
  element.append(small);
}

function say(state, why) {
  write(at("why"), why);
  if (root.dataset.state === state) return;
  const [word, shape] = STATES[state];
  root.dataset.state = state;
  at("word").textContent = word;
  at("mark").setAttribute("d", shape);
  document.title = `${word} · fooproxy · ${location.host}`;
  const color = getComputedStyle(root).getPropertyValue("--state");
  const path = `<path fill="${color}" fill-rule="evenodd" d="${shape}"/>`;
  const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">${path}</svg>`;
  at("icon").href = `data:image/svg+xml,${encodeURIComponent(icon)}`;
}

// Returns the state of the proxy and an explanation.
function judge({ health: { ready, reasons, warnings }, upstream, upstreams, recovery, report: { connections_active: open } }) {
  const names = (rows) => rows.map((row) => text(row.name)).join(", ");
  const peer = upstreams.length ? `any of the ${upstreams.length} upstreams` : `the upstream ${text(upstream.address)}`;
  const reason = upstream.reason ? ` (${words(upstream.reason)})` : "";
  const error = `${text(upstream.error ?? "no error known")}${reason}`;
  if (reasons.includes("draining")) {
    const sessions = open === 1 ? "one session is" : `${count(open)} sessions are`;
    return ["draining", `The proxy is stopping and accepts no new clients; ${sessions} still open.`];
  }
  if (reasons.includes("loop")) {
    return ["not-ready", `Clients cannot be served: the proxy forwards to itself. Set --forward to the Foo server; it is ${text(upstream.address)}.`];
  }
  if (reasons.includes("upstream_unreachable")) {
    return ["not-ready", `Clients cannot be served: the proxy cannot connect to ${peer}: ${error}`];
  }
  if (!ready) return ["not-ready", `The proxy is not ready for clients: ${reasons.map(words).join(", ")}.`];
  if (warnings.includes("upstream_stuck")) {
    const silent = upstreams.length ? names(upstreams.filter((row) => row.stuck)) : peer;
    return ["degraded", `Requests are in vain: for 10 seconds, ${silent} has not answered any.`];
  }
  if (warnings.includes("only_naks")) {
    return ["degraded", `For 10 seconds, ${peer} has rejected every request with NAK.`];
  }
  if (warnings.includes("upstream_drops_requests")) {
    return ["degraded", `Lately, ${peer} has left requests unanswered, or closed connections as soon as they were made.`];
  }
  if (warnings.includes("upstream_down")) {
    return ["degraded", `Clients are being served, but not by ${names(upstreams.filter((row) => row.state === "down"))}.`];
  }
  if (warnings.includes("upstream_held")) {
    const held = names(upstreams.filter(({ state }) => ["paused", "draining"].includes(state))) || peer;
    if (["up", "unknown"].includes(upstream.state)) return ["degraded", `Clients are being served, but an operator keeps them from ${held}.`];
    return ["degraded", `New clients wait: an operator keeps them from ${held}.`];
  }
  if (warnings.includes("discovery_failing")) {
    return ["degraded", "Clients are being served, but a name of servers cannot be looked up: the servers found before are kept."];
  }
  if (recovery.failing || warnings.includes("recovery_failing")) {
    const lost = "a restart would lose the counts since the last save";
    return ["degraded", `Traffic passes, but saving the statistics to ${text(recovery.path)} fails; ${lost}.`];
  }
  if (warnings.length) return ["degraded", `Traffic passes, but there are warnings: ${warnings.map(words).join(", ")}.`];
  if (upstream.state === "down") return ["degraded", `The last attempt to connect to ${peer} failed: ${error}`];
  const reached = upstream.state === "up" ? "is reachable" : "has not been needed yet";
  return ["ok", `Clients are being served, ${peer} ${reached}, and the statistics are being saved.`];
}

function showClosed(reasons, unanswered) {
  const list = at("closed");
  const most = Math.max(1, ...Object.values(reasons));
  Object.entries(reasons).forEach(([reason, number], index) => {
    if (!list.children[index]) {
      list.append(document.createElement("div"));
      list.lastChild.append(document.createElement("dt"), document.createElement("dd"));
    }
    const row = list.children[index];
    const lost = unanswered[reason] ? `, ${count(unanswered[reason])} unanswered` : "";
    write(row.firstChild, `${words(reason)}${lost}`);
    write(row.lastChild, count(number));
    row.classList.toggle("none", number === 0);
    row.style.setProperty("--part", `${(100 * number) / most}%`);
  });
}

function show(answer, asked) {
  const { history, report } = answer;
  past.add(history, started !== null && started !== answer.started);
  started = answer.started;
  answered = Date.now();
  answer.nak_share = past.sum("naks", 10) / past.sum("responses", 10);
  for (const element of figures) {
    const value = element.dataset.show.split(".").reduce((part, name) => part[name], answer);
    const shown = format[element.dataset.as](value);
    write(element, shown);
    // Lists dim these.
    element.parentNode.classList.toggle("none", /^(0|0\u00a0B|–)$/.test(shown));
  }
  charts.requests.show(past.series.requests);
  charts.replies.show(past.series.responses, past.series.naks);
  charts.sessions.show(past.series.sessions);
  charts.latency.show(past.series.p50, past.series.p99);
  spread.show(answer.latency_buckets, report.latency_seconds_10s);
  showClosed(report.connections_closed, report.requests_unanswered);
  sessions.show(answer.connections, asked);
  upstreams.show(answer.upstreams);
  write(at("updated"), clock());
  say(...judge(answer));
}

async function ask(query) {
  const url = `live?${new URLSearchParams(query)}`;
  let answer;
  try {
    answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (answer.ok) return await answer.json();
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Error(late ? "The proxy has not answered for 5 seconds" : "The proxy does not answer");
  }
  throw new Error(`The proxy answered with HTTP status ${answer.status}`);
}

async function update() {
  const asked = sessions.query;
  try {
    let answer = await ask(past.last === null ? asked : { ...asked, since: past.last });
    // To a restarted proxy, that number means another second; so this takes all that it has.
    if (started !== null && started !== answer.started) answer = await ask(asked);
    show(answer, asked);
    if (optionsOf !== started) {
      await showOptions(at("options"), PATIENCE);
      optionsOf = started;
    }
    root.classList.remove("old");
  } catch (error) {
    const seen = answered ? ` The figures shown are from ${clock()}, ${age((Date.now() - answered) / 1000)} ago.` : "";
    say("lost", `${error.message}.${seen}`);
    root.classList.add("old");
  }
  if (paused) sayPaused();
}

function sayPaused() {
  root.classList.add("old");
  const shown = answered ? `The figures shown are from ${clock()}.` : "No figures have arrived yet.";
  say("paused", `${shown} Click Resume for current ones.`);
}

// Asks now and then every second.  A change made while an answer is pending is requested right after that answer.
async function follow(changed = false) {
  clearTimeout(timer);
  again ||= changed && busy;
  if (busy || document.hidden || (paused && !changed)) return;
  busy = true;
  const began = performance.now();
  await update();
  busy = false;
  timer = setTimeout(follow, again ? 0 : Math.max(100, 1000 - (performance.now() - began)), again);
  again = false;
}

at("pause").addEventListener("click", () => {
  paused = !paused;
  write(at("pause"), paused ? "Resume" : "Pause");
  if (paused) sayPaused();
  follow();
});
document.addEventListener("visibilitychange", () => follow());
follow();
