// The table of servers.  It is shown if there are several, or if the only one has more to show than the rest of the page
// does: checks, a limit of its own, pooled links, or an operator's hold.

import { age, count, latency, text, words } from "./format.js";
import { Table } from "./table.js";

const sum = (counts) => Object.values(counts ?? {}).reduce((all, number) => all + number, 0);
const state = (row) => [words(row.state), row.backup && "backup", row.stuck && "stuck"].filter(Boolean).join(", ");
const odd = (row) => (row.outlier ?? []).map((word) => `${word} far from the others'`);
const failedCheck = ({ check }) => (check?.result === "failed" && check.last_error ? `check: ${check.last_error}` : "");
const why = (row) => [row.error, failedCheck(row), ...odd(row)].filter(Boolean).join("; ");
const sessions = (row) =>
  row.connections_limit ? `${count(row.connections_active)} of ${count(row.connections_limit)}` : count(row.connections_active);

function check({ check: last }) {
  if (!last) return "–";
  return last.result === null ? "not yet" : `${words(last.result)}, ${latency(last.took_seconds)}`;
}

const links = (row) =>
  Object.entries(row.links ?? {}).filter(([, number]) => number)
    .map(([name, number]) => `${count(number)} ${words(name)}`).join(", ") || "–";

const COLUMNS = [
  { heading: "Server", cell: (row) => text(row.name), kind: "words" },
  { heading: "State", cell: state, kind: "words" },
  { heading: "For", cell: (row) => age(row.state_seconds) },
  { heading: "Check", cell: check, kind: "words", when: (rows) => rows.some((row) => row.check) },
  { heading: "Weight", cell: (row) => count(row.weight), when: (rows) => rows.some((row) => row.weight !== rows[0].weight) },
  { heading: "Sessions", cell: sessions },
  { heading: "Links", cell: links, kind: "words", when: (rows) => rows.some((row) => row.links) },
  { heading: "In flight", cell: (row) => count(row.requests_in_flight) },
  { heading: "REQ", cell: (row) => count(row.requests) },
  { heading: "ACK", cell: (row) => count(row.replies.ack) },
  { heading: "NAK", cell: (row) => count(row.replies.nak) },
  { heading: "Unanswered", cell: (row) => count(row.requests_unanswered) },
  { heading: "p50", cell: (row) => latency(row.latency_seconds.p50) },
  { heading: "p99", cell: (row) => latency(row.latency_seconds.p99) },
  { heading: "No connect", cell: (row) => count(sum(row.connect_failures)), when: (rows) => rows.some((row) => row.connect_failures) },
  { heading: "Taken out", cell: (row) => count(row.ejections), when: (rows) => rows.some((row) => row.ejections) },
  { heading: "Why, and what is odd", cell: (row) => text(why(row) || "–"), kind: "words wide", when: (rows) => rows.some(why) },
];

export class Upstreams {
  constructor() {
    this.section = document.getElementById("upstreams");
    this.table = new Table("upstream-heads", "upstream-rows", COLUMNS);
  }

  show(rows) {
    const apart = ({ check, connections_limit: limit, links, state }) =>
      check || limit || links || ["draining", "paused"].includes(state);
    this.section.hidden = rows.length < 2 && !rows.some(apart);
    if (!this.section.hidden) this.table.show(rows);
  }
}
