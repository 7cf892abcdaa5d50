// The last 15 minutes: one value per second for each series, null for unknown seconds.

export const SECONDS = 900;
const NAMES = ["requests", "responses", "naks", "p50", "p99", "sessions", "opened", "bytes_from_clients", "bytes_from_upstream"];

export class History {
  last = null; // The number of the newest second, and its time on the proxy's clock.
  time = null;
  series = Object.fromEntries(NAMES.map((name) => [name, []]));
  failures = {}; // A series for each reason that has occurred.

  // A restarted proxy numbers its seconds anew, so the clock tells how many have passed; it may resend known ones.
  add(entries, restarted) {
    const fresh = entries.requests.length;
    const numbered = entries.last - (this.last ?? entries.last - fresh);
    const passed = restarted ? Math.round(entries.time - this.time) : numbered;
    const known = this.series.requests.length;
    const kept = Math.max(0, known - Math.max(0, fresh - passed));
    const missing = Math.min(SECONDS, Math.max(0, passed - fresh));
    const grown = (values, added, filler) =>
      [...values.slice(0, kept), ...new Array(missing).fill(filler), ...added].slice(-SECONDS);
    for (const name of NAMES) this.series[name] = grown(this.series[name], entries[name], null);
    const [before, now] = [this.failures, entries.failures];
    this.failures = {};
    for (const reason of new Set([...Object.keys(before), ...Object.keys(now)])) {
      const old = before[reason] ?? new Array(known).fill(0);
      const values = grown(old, now[reason] ?? new Array(fresh).fill(0), 0);
      if (values.some(Boolean)) this.failures[reason] = values;
    }
    this.last = entries.last;
    this.time = entries.time;
  }

  newest(name) {
    return this.series[name].at(-1);
  }

  sum(name, seconds) {
    return total(this.series[name].slice(-seconds));
  }

  // The percentage of NAKs among the replies of each second; null without replies.
  get nakShares() {
    const { naks, responses } = this.series;
    return responses.map((count, index) => (count ? (100 * naks[index]) / count : null));
  }

  // All failures of each second, whatever their reason.
  get failed() {
    const all = this.series.requests.map((count) => (count === null ? null : 0));
    for (const values of Object.values(this.failures)) {
      values.forEach((count, index) => {
        if (count) all[index] += count;
      });
    }
    return all;
  }

  // How many sessions have failed in the last `seconds`, by reason, the most frequent first.
  failedBy(seconds) {
    const counts = Object.entries(this.failures).map(([reason, values]) => [reason, total(values.slice(-seconds))]);
    return counts.filter(([, count]) => count).sort(([, one], [, other]) => other - one);
  }
}

const total = (values) => values.reduce((sum, value) => sum + value, 0);
