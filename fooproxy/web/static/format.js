// Formats values from the proxy for people: thousands separators, three significant digits, and units after a no-break
// space.  Null, and anything else that is not a number, becomes a dash.

const SPACE = "\u00a0";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

// Trailing zeros are kept, so that figures do not change their width.
const digits = (value) => (value >= 99.95 || value === 0 ? WHOLE.format(value) : value.toPrecision(3));
const known = (format) => (value) => (Number.isFinite(value) ? format(value) : "–");

export const count = known((value) => WHOLE.format(value));
export const sum = (counts) => count(Object.values(counts).reduce((all, value) => all + value, 0));
export const short = known((value) => SHORT.format(value));
export const rate = known((value) => {
  const number = value % 1 && value < 99.95 ? value.toFixed(1) : WHOLE.format(value);
  return `${number}${SPACE}/s`;
});
export const percent = known((value) => `${digits(value)}${SPACE}%`);
export const share = known((value) => `${digits(100 * value)}${SPACE}%`);

export const size = known((bytes) => {
  if (bytes < 1024) return `${WHOLE.format(bytes)}${SPACE}B`;
  const power = Math.min(5, Math.floor(Math.log2(bytes) / 10));
  return `${digits(bytes / 1024 ** power)}${SPACE}${"KMGTP"[power - 1]}iB`;
});

export const sizeRate = known((bytes) => `${size(bytes)}/s`);

// A time of day, from seconds since 1970, in a zone that is `offset` seconds from UTC.
export const time = (seconds, offset) => new Date((seconds + offset) * 1000).toISOString().slice(11, 19);

// A short duration in seconds, with a precision down to microseconds.
export const latency = known((seconds) => {
  if (seconds < 0.0009995) return `${digits(seconds * 1e6)}${SPACE}µs`;
  if (seconds < 0.9995) return `${digits(seconds * 1e3)}${SPACE}ms`;
  return seconds < 60 ? `${digits(seconds)}${SPACE}s` : age(seconds);
});

// A long duration in seconds, in its two largest units.
export const age = known((seconds) => {
  if (seconds < 9.95) return `${seconds.toFixed(1)}${SPACE}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}${SPACE}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${WHOLE.format(Math.floor(whole / 86400))} d ${Math.floor((whole % 86400) / 3600)} h`;
});

export const list = (values) => (values ?? []).join(", ") || "–";
export const ago = known((seconds) => `${age(seconds)} ago`);

// Plain text; and names from the JSON, with spaces instead of underscores.
export const text = (value) => String(value ?? "–");
export const words = (value) => text(value).replaceAll("_", " ");
