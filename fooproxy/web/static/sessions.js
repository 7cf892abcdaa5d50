// The table of sessions.  The proxy sorts the rows and limits their number; this file fills them, and
// reuses them each second.

import { age, count, latency, size, text, words } from "./format.js";

const state = ({ state, paused }) => words(state) + (paused.length ? `, ${paused.join(" and ")} not read` : "");

// JSON key, heading, cell text, kind.  The first click sorts words from A to Z, and numbers from the largest.
const COLUMNS = [
  ["id", "No.", (row) => count(row.id)],
  ["client", "Client", (row) => text(row.client), "words"],
  ["state", "State", state, "words"],
  ["age_seconds", "Age", (row) => age(row.age_seconds)],
  ["idle_seconds", "Idle", (row) => age(row.idle_seconds)],
  ["msg_req", "REQ", (row) => count(row.msg_req)],
  ["msg_ack", "ACK", (row) => count(row.msg_ack)],
  ["msg_nak", "NAK", (row) => count(row.msg_nak)],
  ["msg_invalid", "Invalid", (row) => count(row.msg_invalid)],
  ["requests_in_flight", "In flight", (row) => count(row.requests_in_flight)],
  ["latency_p50_seconds", "p50", (row) => latency(row.latency_p50_seconds)],
  ["latency_p99_seconds", "p99", (row) => latency(row.latency_p99_seconds)],
  ["bytes_from_client", "From client", (row) => size(row.bytes_from_client)],
  ["bytes_from_upstream", "From upstream", (row) => size(row.bytes_from_upstream)],
  // Left out if there is only one.
  ["upstream_name", "Upstream", (row) => text(row.upstream_name), "words"],
];

export class Sessions {
  // `changed` is called when the user chooses another order or number of rows.
  constructor(changed) {
    this.sort = "age_seconds";
    this.order = "desc";
    this.body = document.getElementById("rows");
    this.summary = document.getElementById("shown");
    this.choice = document.getElementById("limit");
    this.choice.addEventListener("change", changed);
    this.filter = document.getElementById("filter");
    this.filter.addEventListener("input", changed);
    this.texts = [];
    this.heads = COLUMNS.map(([column, heading, , kind]) => {
      const head = document.createElement("th");
      const button = document.createElement("button");
      head.scope = "col";
      head.dataset.column = column;
      head.className = kind ?? "number";
      button.type = "button";
      button.textContent = heading;
      button.addEventListener("click", () => {
        const first = kind ? "asc" : "desc";
        this.order = this.sort !== column ? first : this.order === "asc" ? "desc" : "asc";
        this.sort = column;
        changed();
      });
      head.append(button);
      document.getElementById("heads").append(head);
      return head;
    });
  }

  get query() {
    return { sort: this.sort, order: this.order, limit: this.choice.value, ...(this.filter.value && { filter: this.filter.value }) };
  }

  // `asked` is the query that this answer belongs to.
  show({ total, matching, connections }, asked, several) {
    this.body.parentNode.classList.toggle("single", !several);
    for (const head of this.heads) {
      const sorted = head.dataset.column === asked.sort;
      head.ariaSort = sorted ? { asc: "ascending", desc: "descending" }[asked.order] : null;
    }
    const among = asked.filter ? `${count(matching)} that match, of ${count(total)}` : count(total);
    const shown = total ? `showing ${count(connections.length)} of ${among}` : "none";
    if (this.summary.textContent !== shown) this.summary.textContent = shown;
    while (this.texts.length > connections.length) {
      this.texts.pop();
      this.body.lastChild.remove();
    }
    while (this.texts.length < connections.length) {
      const row = this.body.insertRow();
      for (const [column, , , kind] of COLUMNS) {
        const cell = document.createElement(column === "client" ? "th" : "td");
        if (column === "client") cell.scope = "row";
        cell.className = kind ?? "number";
        row.append(cell);
      }
      this.texts.push(new Array(COLUMNS.length));
    }
    connections.forEach((connection, index) => this.fill(this.body.rows[index], this.texts[index], connection));
  }

  fill(row, texts, connection) {
    COLUMNS.forEach(([, , shown, kind], index) => {
      const now = shown(connection);
      if (texts[index] === now) return;
      texts[index] = now;
      row.cells[index].textContent = now;
      // Narrow columns truncate long words.
      if (kind) row.cells[index].title = now;
    });
  }
}
