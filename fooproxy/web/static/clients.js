// The list of clients, by address.  The proxy looks at all sessions to add them up, so the page asks only every few
// seconds, and only while the list is open.

import { count, size, text } from "./format.js";
import { Table } from "./table.js";

const EVERY = 5000;
const MOST = 20;

const COLUMNS = [
  { heading: "Client", cell: (row) => text(row.client), kind: "words" },
  { heading: "Open sessions", cell: (row) => count(row.connections_active) },
  { heading: "All sessions", cell: (row) => count(row.connections_total) },
  { heading: "Requests", cell: (row) => count(row.requests) },
  { heading: "Replies", cell: (row) => count(row.replies) },
  { heading: "Invalid", cell: (row) => count(row.msg_invalid) },
  { heading: "From client", cell: (row) => size(row.bytes_from_client) },
  { heading: "From upstream", cell: (row) => size(row.bytes_from_upstream) },
];

export class Clients {
  constructor(changed) {
    this.section = document.getElementById("clients");
    this.summary = document.getElementById("clients-shown");
    this.table = new Table("client-heads", "client-rows", COLUMNS);
    this.asked = -Infinity;
    this.section.addEventListener("toggle", () => {
      this.asked = -Infinity;
      changed();
    });
  }

  async update(ask) {
    if (!this.section.open || performance.now() - this.asked < EVERY) return;
    this.asked = performance.now();
    const { total, clients, other } = await ask("clients", { limit: MOST });
    const rest = total - clients.length;
    this.summary.textContent = total ? `${count(total)} since the counters began` : "none yet";
    this.table.show(rest > 0 || other.connections_total ? [...clients, { ...other, client: "all others" }] : clients);
  }
}
