// Calls of the worker's API, with the key of this tab, and its errors as sentences.

/** An error of the API, or of the way to it. `message` and `hint` are whole sentences. */
export class Fault extends Error {
  constructor(status, body = {}) {
    super(body.error_message || `The worker answered with status ${status}.`);
    this.status = status;
    this.code = body.code || "unknown";
    this.hint = body.hint || "Try it again.";
    this.input = body.input || null;
    this.retryable = Boolean(body.retryable);
  }

  get isAboutTheKey() {
    return this.code === "key_missing" || this.code === "key_wrong";
  }
}

const UNREACHABLE = {
  error_message: "The worker cannot be reached.",
  code: "unreachable",
  hint: "Check the connection of this device; the page tries again.",
  retryable: true,
};

export class Api {
  /** `keys` has the key of this tab, or asks for one. */
  constructor(keys) {
    this.keys = keys;
    this.base = new URL("./", document.baseURI);
  }

  url(path) {
    return new URL(path, this.base);
  }

  headers(more = {}) {
    return this.keys.key ? { "X-Internal-API-Key": this.keys.key, ...more } : { ...more };
  }

  /** Return the answer of a call. `asks`: a missing key is asked for, once.
   *
   * Throws a Fault, or the AbortError of `signal`. */
  async call(method, path, { json, headers, signal, asks = true } = {}) {
    const given = this.headers(headers);
    const key = this.keys.key;
    if (json !== undefined) given["Content-Type"] = "application/json";
    let answer;
    try {
      const body = json === undefined ? undefined : JSON.stringify(json);
      answer = await fetch(this.url(path), { method, headers: given, body, signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Fault(0, UNREACHABLE);
    }
    if (answer.ok) return answer;
    const fault = new Fault(answer.status, inWords(await answer.json().catch(() => ({}))));
    if (fault.isAboutTheKey && asks) {
      // Another call may have been given a key meanwhile.
      if (this.keys.key === key && !(await this.keys.ask(fault))) throw fault;
      return this.call(method, path, { json, headers, signal, asks: this.keys.key !== key });
    }
    throw fault;
  }

  async json(method, path, options) {
    return (await this.call(method, path, options)).json();
  }

  /** Return what this worker offers, by its own description. */
  async features() {
    const description = await this.json("GET", "openapi.json");
    const paths = Object.keys(description.paths);
    const params = description.components.schemas.Params?.properties ?? {};
    return {
      uploads: paths.includes("/v1/uploads"),
      estimate: paths.includes("/v1/estimate"),
      has: (name) => name in params,
      words: (name) => wordsOf(params[name]),
    };
  }
}

/** Return the body of an error, in words for a person where its own are for programs. */
function inWords(body) {
  if (body.code !== "key_missing" && body.code !== "key_wrong") return body;
  const hint = "Press Key at the top of the page and enter the one that its operator gave you.";
  return { ...body, error_message: "This worker needs a key.", hint };
}

/** The words that an option accepts. */
function wordsOf(schema) {
  const kinds = schema?.anyOf ?? [schema ?? {}];
  return kinds.flatMap((kind) => kind.enum ?? (kind.const ? [kind.const] : []));
}

/** Yield each newer state of a job, as it was read, until it has ended. Reconnects by itself. */
export async function* follow(api, job, signal) {
  const path = `v1/avatar/jobs/${encodeURIComponent(job.id)}/events`;
  let shown = job; // The stream begins with the changes before it.
  let last = null;
  for (let failures = 0; ; ) {
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const answer = await api.call("GET", path, { headers, signal });
      for await (const event of events(answer.body)) {
        failures = 0;
        last = event.id ?? last;
        const state = JSON.parse(event.data);
        const isOver = event.kind === "end";
        if (isOver || !isOlder(state, shown)) {
          shown = state;
          yield state;
        }
        if (isOver) return;
      }
    } catch (error) {
      const passes = error instanceof Fault ? error.status === 0 || error.retryable : error.name === "TypeError";
      if (!passes) throw error;
    }
    failures += 1;
    await new Promise((resolve) => setTimeout(resolve, Math.min(10_000, 500 * 2 ** failures)));
    signal.throwIfAborted();
  }
}

/** Whether a state of a job came before another one. Short phases are stored at the same time. */
function isOlder(state, other) {
  if (state.updated_at !== other.updated_at) return state.updated_at < other.updated_at;
  return state.progress.fraction < other.progress.fraction;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop(); // it has not ended yet
      for (const block of blocks) {
        const event = Object.fromEntries(
          block.split("\n").filter((line) => !line.startsWith(":")).map((line) => {
            const at = line.indexOf(": ");
            return [line.slice(0, at), line.slice(at + 2)];
          }),
        );
        if (event.data) yield { kind: event.event, id: event.id, data: event.data };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
