// Shows the options that the proxy runs with, and where each value comes from.

// Asks the proxy for its options, and fills a list; defaults are dimmed.
export async function showOptions(list, ask) {
  const { options } = await ask("config", {});
  list.replaceChildren(...Object.entries(options).map(([name, option]) => row(name, option)));
}

function row(name, { value, source, place }) {
  const element = document.createElement("div");
  const [term, shown] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  shown.textContent = written(value);
  element.append(term, shown);
  element.title = source === "default" ? "default" : `${source}: ${place}`;
  element.classList.toggle("none", source === "default");
  return element;
}

function written(value) {
  if (typeof value === "boolean") return value ? "on" : "off";
  const text = Array.isArray(value) ? value.join(", ") : String(value ?? "");
  return text || "–";
}
