// The table of servers, which is there only if there are several.

import { age, count, latency, text, words } from "./format.js";

const state = (row) => [words(row.state), row.backup ? "backup" : "", row.stuck ? "stuck" : ""].filter(Boolean).join(", ");
const others = ({ outlier, error }) => [error ?? "", ...outlier.map((word) => `${word} far from the others'`)].filter(Boolean).join("; ");
const failures = (row) => Object.values(row.connect_failures).reduce((sum, number) => sum + number, 0);

const checks = ({ check, checks }) => (check ? `${count(checks.passed)} ok, ${count(checks.failed)} failed` : "off");

// Heading, cell text, kind.
const COLUMNS = [
  ["Name", (row) => text(row.name), "words"],
  ["State", state, "words"],
  ["For", (row) => age(row.state_seconds)],
  ["Weight", (row) => count(row.weight)],
  ["Sessions", (row) => count(row.connections_active)],
  ["At most", (row) => count(row.connections_limit)],
  ["In flight", (row) => count(row.requests_in_flight)],
  ["REQ", (row) => count(row.requests)],
  ["ACK", (row) => count(row.replies.ack)],
  ["NAK", (row) => count(row.replies.nak)],
  ["Unanswered", (row) => count(row.requests_unanswered)],
  ["p50", (row) => latency(row.latency_seconds.p50)],
  ["p99", (row) => latency(row.latency_seconds.p99)],
  ["Failed connects", (row) => count(failures(row))],
  ["Checks", checks],
  ["Taken out", (row) => count(row.ejections)],
  ["Why, and what is odd", (row) => text(others(row)), "words"],
];

export class Upstreams {
  constructor() {
    this.section = document.getElementById("upstreams");
    this.body = document.getElementById("upstream-rows");
    for (const [heading, , kind] of COLUMNS) {
      const head = document.createElement("th");
      head.scope = "col";
      head.className = kind ?? "number";
      head.textContent = heading;
      document.getElementById("upstream-heads").append(head);
    }
  }

  show(rows) {
    this.section.hidden = rows.length < 2;
    while (this.body.children.length > rows.length) this.body.lastChild.remove();
    rows.forEach((row, index) => {
      if (!this.body.children[index]) {
        const line = document.createElement("tr");
        for (const [, , kind] of COLUMNS) {
          const cell = document.createElement("td");
          cell.className = kind ?? "number";
          line.append(cell);
        }
        this.body.append(line);
      }
      COLUMNS.forEach(([, cell], column) => {
        const shown = cell(row);
        const place = this.body.children[index].children[column];
        if (place.textContent !== shown) place.textContent = shown;
      });
    });
  }
}
