// A plain table whose rows are filled anew each time; a column can be left out while no row has anything for it.

export class Table {
  // Columns are { heading, cell: row => text, kind, when: rows => whether it is shown }.
  constructor(heads, body, columns) {
    this.heads = document.getElementById(heads);
    this.body = document.getElementById(body);
    this.columns = columns;
    this.shown = [];
  }

  show(rows) {
    const shown = this.columns.filter(({ when }) => !when || when(rows));
    if (shown.length !== this.shown.length || shown.some((column, index) => column !== this.shown[index])) this.head(shown);
    while (this.body.children.length > rows.length) this.body.lastChild.remove();
    rows.forEach((row, number) => {
      const line = this.body.children[number] ?? this.line();
      shown.forEach(({ cell, kind }, index) => {
        const text = cell(row);
        const place = line.children[index];
        if (place.textContent === text) return;
        place.textContent = text;
        // Narrow columns truncate long words.
        if (kind) place.title = text;
      });
    });
  }

  head(columns) {
    this.shown = columns;
    this.body.replaceChildren();
    this.heads.replaceChildren(
      ...columns.map(({ heading, kind }) => {
        const head = document.createElement("th");
        head.scope = "col";
        head.className = kind ?? "number";
        head.textContent = heading;
        return head;
      }),
    );
  }

  line() {
    const line = document.createElement("tr");
    this.shown.forEach(({ kind }, index) => {
      const cell = document.createElement(index ? "td" : "th");
      if (!index) cell.scope = "row";
      cell.className = kind ?? "number";
      line.append(cell);
    });
    this.body.append(line);
    return line;
  }
}
