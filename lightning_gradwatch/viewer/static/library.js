// The series that are on the page: each is asked for once, and again when it has grown.

import { decodeSeries } from "./blob.js";
import { seriesOf } from "./runs.js";

// How far the last column goes is known from what else the run has told, at its end from the last reading. A series that
// has not changed stays the same object, and need not be drawn again.
function withNewest(series, newest) {
  return !series.single && newest > series.lastStep ? { ...series, lastStep: newest } : series;
}

// As many as a run has records at most; no screen is wider.
const MOST_COLUMNS = 2048;

/** Keeps decoded series by run and name. */
export class Library {
  constructor(source) {
    this.source = source;
    this.kept = new Map();
  }

  /** Return {run, about, series, fault}: what a run has for a view, or why it cannot be shown. */
  async load(run, view) {
    const about = view ? seriesOf(run, view) : null;
    if (!about) return { run, about: null, series: null, fault: null };
    const key = JSON.stringify([run.name, about.name]);
    const known = this.kept.get(key);
    const kept = (series) => {
      const upToDate = withNewest(series, run.last_step);
      this.kept.set(key, { version: about.version, series: upToDate });
      return { run, about, series: upToDate, fault: null };
    };
    if (known && known.version === about.version) return kept(known.series);
    try {
      return kept(decodeSeries(await this.source.series(run.name, about.name, MOST_COLUMNS)));
    } catch (error) {
      // What was read before is better than nothing, and the message says that it is old.
      return { run, about, series: known?.series || null, fault: error.message };
    }
  }

  /** Forget the series of runs and views that are not shown any more. */
  keepOnly(loaded) {
    const wanted = new Set(loaded.filter((one) => one.about).map((one) => JSON.stringify([one.run.name, one.about.name])));
    for (const key of this.kept.keys()) if (!wanted.has(key) && this.kept.size > 12) this.kept.delete(key);
  }
}
