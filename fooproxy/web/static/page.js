// Keeps the page up to date: one small request per second, none while the tab is hidden, and never two at once.  Text
// in answers is untrusted and never becomes markup.  If the proxy does not answer, the page says so and marks its
// figures as old.

import { Histogram, TimeChart } from "./chart.js";
import { Clients } from "./clients.js";
import { showEnds, showLately } from "./ends.js";
import * as format from "./format.js";
import { History } from "./history.js";
import { showOptions } from "./options.js";
import { Sessions } from "./sessions.js";
import { Upstreams } from "./upstreams.js";

const PATIENCE = 5000;
const { age, count, latency, percent, rate, short, size, sizeRate, time } = format;
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

const past = new History();
const sessions = new Sessions(() => follow(true));
const upstreams = new Upstreams();
const clients = new Clients(() => follow(true));
const range = at("range");
const charts = {
  requests: new TimeChart("requests-chart", "Requests per second", ["requests"], rate, short),
  replies: new TimeChart("replies-chart", "Replies per second", ["replies"], rate, short),
  naks: new TimeChart("naks-chart", "Share of NAKs among the replies", ["NAK"], percent, (value) => `${value}\u00a0%`),
  opened: new TimeChart("opened-chart", "New sessions per second", ["new sessions"], rate, short),
  bytes: new TimeChart("bytes-chart", "Bytes per second", ["from clients", "from upstream"], sizeRate, size, 1024),
  failures: new TimeChart("failures-chart", "Failed sessions per second", ["failures"], rate, short),
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
let offset = 0; // The proxy's offset from UTC, in seconds.
let host = location.host;
let optionsOf = null; // When the proxy whose options are shown was started; while it runs, they do not change.
let busy = false;
let again = false;
let paused = false;
let timer;

// The time of the newest figures, in the time zone of the proxy's log.
const clock = () => time(past.time, offset);

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

function say(state, why, also = []) {
  write(at("why"), why);
  const list = at("also");
  list.hidden = !also.length;
  if (list.shown !== also.join("\n")) {
    list.shown = also.join("\n");
    list.replaceChildren(...also.map((sentence) => Object.assign(document.createElement("li"), { textContent: sentence })));
  }
  if (root.dataset.state === state) return;
  const [word, shape] = STATES[state];
  root.dataset.state = state;
  at("word").textContent = word;
  at("mark").setAttribute("d", shape);
  document.title = `${word} · fooproxy · ${host}`;
  const color = getComputedStyle(root).getPropertyValue("--state");
  const path = `<path fill="${color}" fill-rule="evenodd" d="${shape}"/>`;
  const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24">${path}</svg>`;
  at("icon").href = `data:image/svg+xml,${encodeURIComponent(icon)}`;
}

function show(answer, asked) {
  const { history, report } = answer;
  past.add(history, started !== null && started !== answer.started);
  started = answer.started;
  answered = Date.now();
  answer.nak_share = past.sum("naks", 10) / past.sum("responses", 10);
  answer.opened = past.newest("opened");
  answer.bytes = { clients: past.newest("bytes_from_clients"), upstream: past.newest("bytes_from_upstream") };
  offset = answer.process.utc_offset_seconds ?? 0;
  host = `${answer.process.host ?? location.host} ${answer.process.listen?.[0] ?? ""}`;
  for (const element of figures) {
    const value = element.dataset.show.split(".").reduce((part, name) => part[name], answer);
    const shown = format[element.dataset.as](value);
    write(element, shown);
    // Lists dim zeros and unknown values.
    element.parentNode.classList.toggle("none", /^(0|0\u00a0B|–)$/.test(shown));
  }
  draw();
  spread.show(answer.latency_buckets, report.latency_seconds_10s);
  showEnds(report.connections_closed, report.requests_unanswered, write);
  sessions.show(answer.connections, asked, answer.upstreams.length > 1);
  upstreams.show(answer.upstreams);
  write(at("updated"), clock());
  say(answer.verdict.state, answer.verdict.why, answer.verdict.also);
}

function draw() {
  const { series } = past;
  // The axes reach back no further than the known seconds.
  const seconds = Math.min(Number(range.value), Math.max(60, series.requests.length));
  TimeChart.now = { seconds, time: past.time, offset };
  charts.requests.show(series.requests);
  charts.replies.show(series.responses);
  charts.naks.show(past.nakShares);
  charts.sessions.show(series.sessions);
  charts.opened.show(series.opened);
  charts.failures.show(past.failed);
  charts.bytes.show(series.bytes_from_clients, series.bytes_from_upstream);
  charts.latency.show(series.p50, series.p99);
  const failed = past.failedBy(Number(range.value));
  write(at("failed"), count(failed.reduce((sum, [, number]) => sum + number, 0)));
  write(at("failed-range"), `last ${range.value / 60} min`);
  showLately(at("failed-by"), failed, write);
}

async function ask(resource, query) {
  const url = `${resource}?${new URLSearchParams(query)}`;
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
    let answer = await ask("live", past.last === null ? asked : { ...asked, since: past.last });
    // To a restarted proxy, that number means another second, so ask for its whole history.
    if (started !== null && started !== answer.started) answer = await ask("live", asked);
    show(answer, asked);
    if (optionsOf !== started) {
      await showOptions(at("options"), ask);
      optionsOf = started;
    }
    await clients.update(ask);
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
range.addEventListener("change", () => past.time !== null && draw());
document.addEventListener("visibilitychange", () => follow());
follow();
