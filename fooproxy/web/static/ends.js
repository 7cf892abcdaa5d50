// The ends of sessions: all since the counters began, and the recent failures by reason.

import { count, words } from "./format.js";

const MOST = 6; // reasons listed under the chart

// Shows how many sessions have ended for each reason; the rows are in index.html, and those that are 0 are hidden.
export function showEnds(closed, unanswered, write) {
  const most = Math.max(1, ...Object.values(closed));
  for (const list of document.querySelectorAll("#closed .list")) {
    let some = false;
    for (const row of list.querySelectorAll("[data-reason]")) {
      const number = closed[row.dataset.reason] ?? 0;
      const lost = unanswered[row.dataset.reason] ? `, ${count(unanswered[row.dataset.reason])} unanswered` : "";
      row.hidden = number === 0;
      some ||= number > 0;
      write(row.firstElementChild, `${words(row.dataset.reason)}${lost}`);
      write(row.lastElementChild, count(number));
      row.style.setProperty("--part", `${(100 * number) / most}%`);
    }
    list.querySelector(".empty").hidden = some;
  }
}

// Fills a list with how often each reason occurred lately, as [reason, count] pairs.
export function showLately(list, counts, write) {
  const shown = counts.slice(0, MOST);
  const rest = counts.slice(MOST).reduce((sum, [, number]) => sum + number, 0);
  if (rest) shown.push(["all others", rest]);
  while (list.children.length > shown.length) list.lastChild.remove();
  shown.forEach(([reason, number], index) => {
    if (!list.children[index]) {
      list.append(document.createElement("div"));
      list.lastChild.append(document.createElement("dt"), document.createElement("dd"));
    }
    const row = list.children[index];
    write(row.firstChild, words(reason));
    write(row.lastChild, count(number));
    row.style.setProperty("--part", `${(100 * number) / shown[0][1]}%`);
  });
}
