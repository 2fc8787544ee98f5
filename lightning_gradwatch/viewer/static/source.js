// Where the page gets its numbers: from TensorBoard's server, or from itself.

/** What is told to a person where a source cannot answer. */
export class SourceError extends Error {}

/** Asks the server that serves this page. All addresses are relative, so that a path prefix does no harm. */
export class HttpSource {
  live = true;
  /** The log directory, where the server names it: what a person chose in another one is not taken for this one's. */
  place = "";

  /** Return what is known of each run. */
  async runs() {
    const answer = await askServer("./runs");
    try {
      const told = await answer.json();
      this.place = told.place || "";
      return told.runs;
    } catch {
      throw new SourceError("The server answered with something that is no list of runs.");
    }
  }

  /** Return the bytes of a series, at most so many columns. */
  async series(run, name, most) {
    const answer = await askServer(`./series?${new URLSearchParams({ run, name, most })}`);
    return answer.arrayBuffer();
  }
}

async function askServer(address) {
  let answer;
  try {
    answer = await fetch(address, { cache: "no-store" });
  } catch {
    throw new SourceError("The server does not answer. Is TensorBoard still running?");
  }
  if (answer.ok) return answer;
  const said = (await answer.text().catch(() => "")).trim().slice(0, 200);
  throw new SourceError(`The server answered ${answer.status}${said ? `: ${said}` : ""}.`);
}

/** Reads what was written into the page itself. */
export class EmbeddedSource {
  live = false;
  place = "report";

  /** `holder`: the element whose text is the JSON. */
  constructor(holder = document.getElementById("gradwatch-data")) {
    try {
      this.data = JSON.parse(holder.textContent);
    } catch {
      this.data = null;
    }
  }

  /** Return what is known of each run. */
  async runs() {
    if (!this.data) throw new SourceError("This file is damaged: its numbers cannot be read. Write the report again.");
    return this.data.runs;
  }

  /** Return the bytes of a series; all columns that are in the file. */
  async series(run, name) {
    const packed = this.data?.series?.[run]?.[name];
    if (!packed) throw new SourceError("This file does not hold that series.");
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  /** Return a run as Markdown; empty where the file has none. */
  markdown(run) {
    return this.data?.markdown?.[run] || "";
  }
}
