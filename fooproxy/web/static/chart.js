// Draws the charts as SVG: lines over the last minutes, and a histogram.  Each chart has labelled axes, an
// aria-label with the main values, and a caption that shows the values under the pointer.  page.css sets colours and
// dashes.

import { age, latency, share, time } from "./format.js";

const STEPS = [15, 30, 60, 120, 300]; // seconds between the times at the axis
const BARS = 10; // bars of the histogram per power of ten
const [LEFT, RIGHT, TOP, BOTTOM] = [52, 6, 8, 22]; // margins around the axes, in px

function add(parent, name, kind) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  element.setAttribute("class", kind);
  parent.append(element);
  return element;
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

// A linear scale from zero with round steps; its ticks are [part of the axis, label].
function even(highest, format, base = 10) {
  if (!highest) return { ticks: [[0, format(0)]], part: () => 0 };
  if (base !== 10) {
    const unit = base ** Math.max(0, Math.floor(Math.log(highest) / Math.log(base)));
    const { ticks, part } = even(highest / unit, (value) => format(value * unit).replace(/\.0+(?=\s)/, ""));
    return { ticks, part: (value) => part(value / unit) };
  }
  const rough = Math.max(highest, 1) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].map((factor) => factor * power).find((value) => value > rough * 0.999));
  const steps = Math.ceil(Math.max(highest, 1) / step);
  const ticks = Array.from({ length: steps + 1 }, (_, index) => [index / steps, format(index * step)]);
  return { ticks, part: (value) => value / (steps * step) };
}

// A logarithmic scale with a tick for each power of ten that the values span.
function logarithmic(lowest, highest, format) {
  const low = Math.floor(Math.log10(lowest) + 1e-9);
  const high = Math.max(low + 1, Math.ceil(Math.log10(highest) - 1e-9));
  const part = (value) => Math.max(0, (Math.log10(value) - low) / (high - low));
  const ticks = [];
  for (let power = low; power <= high; power++) {
    ticks.push([(power - low) / (high - low), format(10 ** power).replace(/\.0+/, "")]);
  }
  return { ticks, part, low, high };
}

// The common part of both charts: size, labelled grid, caption, pointer.  Positions are parts of the width, 0 to 1.
class Plot {
  pointed = null;
  onpoint = (place) => this.point(place);

  constructor(id, name) {
    this.name = name;
    this.svg = document.getElementById(id);
    this.svg.setAttribute("role", "img");
    this.caption = this.svg.parentNode.querySelector("figcaption");
    this.grid = add(this.svg, "path", "grid");
    this.labels = add(this.svg, "g", "labels");
    this.cursor = add(this.svg, "path", "cursor");
    const place = ({ clientX }) => {
      const x = clientX - this.svg.getBoundingClientRect().left;
      return Math.min(1, Math.max(0, (x - LEFT) / (this.right - LEFT)));
    };
    const listen = (kind, listener) => this.svg.addEventListener(kind, listener);
    for (const kind of ["pointerdown", "pointermove"]) listen(kind, (event) => this.onpoint(place(event)));
    for (const kind of ["pointerleave", "pointercancel"]) listen(kind, () => this.onpoint(null));
    new ResizeObserver(([{ contentRect }]) => {
      this.right = contentRect.width - RIGHT;
      this.bottom = contentRect.height - BOTTOM;
      this.draw();
    }).observe(this.svg);
  }

  x(part) {
    return (LEFT + part * (this.right - LEFT)).toFixed(1);
  }

  y(part) {
    return (this.bottom - part * (this.bottom - TOP)).toFixed(1);
  }

  // Redraws the axes only if something has changed.
  axes(across, up) {
    const drawn = JSON.stringify([this.right, this.bottom, across, up]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.labels.replaceChildren();
    let lines = "";
    for (const [part, label] of up) {
      lines += `M${LEFT},${this.y(part)}H${this.right}`;
      this.label(LEFT - 8, Number(this.y(part)) + 4, "end", label);
    }
    for (const [part, label] of across) {
      lines += `M${this.x(part)},${TOP}V${this.bottom}`;
      this.label(this.x(part), this.bottom + 16, { 0: "start", 1: "end" }[part] ?? "middle", label);
    }
    this.grid.setAttribute("d", lines);
  }

  label(x, y, anchor, text) {
    const label = add(this.labels, "text", "label");
    set(label, { x, y, "text-anchor": anchor });
    label.textContent = text;
  }

  // Sets the label for screen readers, and the caption that is shown while nothing is pointed at.
  tell(label, caption) {
    this.svg.setAttribute("aria-label", `${this.name}: ${label}`);
    this.resting = caption;
    this.point(this.pointed);
  }

  point(place) {
    this.pointed = place;
    const [x, text] = place === null ? [null, this.resting] : this.readout(place);
    this.cursor.setAttribute("d", x === null ? "" : `M${x},${TOP}V${this.bottom}`);
    if (this.caption.textContent !== text) this.caption.textContent = text;
  }
}

// Lines with one value per second, null for none; the newest value is at the right edge.
export class TimeChart extends Plot {
  // How many seconds all charts show, and until when, on the proxy's clock.
  static now = { seconds: 900, time: 0, offset: 0 };

  // `ticks` formats the numbers at the axis, `base` is the base of their units.
  constructor(id, name, lines, format, ticks = null, base = 10) {
    super(id, name);
    Object.assign(this, { lines, format, ticks, base, series: lines.map(() => []) });
    this.area = add(this.svg, "path", "area");
    this.paths = lines.map((_, index) => add(this.svg, "path", `line ${index ? "two" : "one"}`));
  }

  show(...series) {
    this.series = series.map((values) => values.slice(-TimeChart.now.seconds));
    this.draw();
  }

  // The scale is linear if there is a format for its ticks, and logarithmic otherwise.
  draw() {
    if (!this.right) return;
    const ranges = this.series.map((values) => {
      const known = values.filter((value) => value !== null);
      return known.length ? [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))] : null;
    });
    const [lows, highs] = [0, 1].map((end) => ranges.filter(Boolean).map((range) => range[end]));
    const highest = Math.max(0, ...highs);
    const lowest = Math.max(1e-6, Math.min(1, ...lows));
    const scale = this.ticks ? even(highest, this.ticks, this.base) : logarithmic(lowest, highest || 1, this.format);
    if (lows.length) this.axes(this.times(), scale.ticks);
    else this.axes([], []);
    this.paths.forEach((path, index) => path.setAttribute("d", this.trace(this.series[index], scale.part)));
    if (this.ticks) this.area.setAttribute("d", this.trace(this.series[0], scale.part, true));
    const told = this.lines.map((line, index) => {
      if (!ranges[index]) return [`${line} none yet`, `no ${line}`];
      const [low, high] = ranges[index].map(this.format);
      const range = ranges[index][1] ? `${line} ${low} to ${high}` : `no ${line}`;
      const now = this.format(this.series[index].at(-1));
      return [`${line} now ${now}, lowest ${low}, highest ${high}`, range];
    });
    const [labels, captions] = [0, 1].map((index) => told.map((texts) => texts[index]));
    this.tell(`${labels.join("; ")}; in the last ${age(TimeChart.now.seconds)}.`, captions.join(" · "));
  }

  // Returns the round times of day in the range, as [part of the axis, label]; none at the edges, where it would not fit.
  times() {
    const { seconds, time: end, offset } = TimeChart.now;
    const step = STEPS.find((each) => seconds / each <= 5);
    const local = end + offset;
    const found = [];
    for (let at = Math.floor(local / step) * step; at > local - seconds; at -= step) {
      const part = 1 - (local - at) / seconds;
      if (part > 0.08 && part < 0.92) found.push([part, time(at, 0).slice(0, step < 60 ? 8 : 5)]);
    }
    return found;
  }

  // Returns the path of a line, or of the area below it.  A single value between two gaps becomes a dot.
  trace(values, part, area = false) {
    let path = "";
    let begun = false;
    values.forEach((value, index) => {
      if (value === null && begun && area) path += `V${this.bottom}Z`;
      if (value !== null) {
        const [x, y] = [this.x(1 - (values.length - 1 - index) / TimeChart.now.seconds), this.y(part(value))];
        path += begun ? `L${x},${y}` : area ? `M${x},${this.bottom}V${y}` : `M${x},${y}h0`;
      }
      begun = value !== null;
    });
    return begun && area ? `${path}V${this.bottom}Z` : path;
  }

  readout(place) {
    const { seconds, time: end, offset } = TimeChart.now;
    const ago = Math.round((1 - place) * seconds);
    const values = this.lines.map((line, index) => `${line} ${this.format(this.series[index].at(-1 - ago))}`);
    const when = ago ? time(end - ago, offset) : "now";
    return [this.x(1 - ago / seconds), `${when}: ${values.join(" · ")}`];
  }
}

// The share of replies by latency.
export class Histogram extends Plot {
  buckets = [];
  quantiles = {};

  constructor(id, name) {
    super(id, name);
    this.bars = add(this.svg, "path", "bars");
    const mark = (kind) => [add(this.svg, "path", `line ${kind}`), add(this.svg, "text", "label mark")];
    this.marks = ["one", "two"].map(mark);
  }

  // Buckets are [upper bound in seconds, count]; the quantiles come from the report.
  show(buckets, quantiles) {
    Object.assign(this, { buckets, quantiles });
    this.draw();
  }

  draw() {
    if (!this.right) return;
    const bounds = this.buckets.length ? [this.buckets[0][0] / 1.3, this.buckets.at(-1)[0] * 1.3] : [1e-4, 1e-2];
    const scale = logarithmic(...bounds, latency);
    this.low = scale.low;
    this.shares = this.spread((scale.high - scale.low) * BARS);
    const up = even(112 * Math.max(...this.shares), (value) => `${value}\u00a0%`);
    const crowded = (this.right - LEFT) / (scale.high - scale.low) < 56;
    const across = scale.ticks.map(([part, label], index) => [part, crowded && index % 2 ? "" : label]);
    if (this.buckets.length) this.axes(across, up.ticks);
    else this.axes([], []);
    const bars = this.shares.map((part, index) => {
      const [left, right] = [index, index + 1].map((edge) => Number(this.x(edge / this.shares.length)));
      const top = Math.min(this.y(up.part(100 * part)), this.bottom - 1);
      return part ? `M${left + 0.75},${this.bottom}V${top}H${right - 0.75}V${this.bottom}Z` : "";
    });
    this.bars.setAttribute("d", bars.join(""));
    const { p50, p99, max, count } = this.quantiles;
    [p50, p99].forEach((value, index) => {
      const [line, text] = this.marks[index];
      const x = count ? this.x(scale.part(value)) : 0;
      line.setAttribute("d", count ? `M${x},${TOP}V${this.bottom}` : "");
      set(text, { x: Number(x) + [-4, 4][index], y: TOP + 8, "text-anchor": ["end", "start"][index] });
      text.textContent = count ? ["p50", "p99"][index] : "";
    });
    const [half, most, all] = [p50, p99, max].map(latency);
    const label = `half of the replies took at most ${half}, 99 % at most ${most}, and the slowest took ${all}.`;
    if (count) this.tell(label, "Share of replies by latency");
    else this.tell("no replies.", "No replies in the last 10 s");
  }

  // Returns the share of each bar.  The proxy has 16 buckets per power of two of microseconds; a bucket that lies under
  // two bars is divided between them.
  spread(number) {
    const counts = new Array(number).fill(0);
    for (const [bound, count] of this.buckets) {
      const width = 2 ** Math.ceil(Math.log2(bound * 1e6) - 1e-9) / 32e6;
      const [from, to] = [bound - width, bound].map((edge) => (Math.log10(edge) - this.low) * BARS);
      for (let bar = Math.max(0, Math.floor(from)); bar < Math.min(number, to); bar++) {
        counts[bar] += (count * (Math.min(to, bar + 1) - Math.max(from, bar))) / (to - from);
      }
    }
    const all = counts.reduce((sum, count) => sum + count, 0);
    return counts.map((count) => (all ? count / all : 0));
  }

  readout(place) {
    const bar = Math.min(this.shares.length - 1, Math.floor(place * this.shares.length));
    const [from, to] = [bar, bar + 1].map((edge) => latency(10 ** (this.low + edge / BARS)));
    return [this.x((bar + 0.5) / this.shares.length), `${from} to ${to}: ${share(this.shares[bar])} of the replies`];
  }
}
