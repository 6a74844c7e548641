// Questions to the server, whose sentences are shown as they are.
export class Problem extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }

  /** Nothing changes until the reader does something about it. */
  get isFinal() {
    return [401, 403, 404, 422].includes(this.status);
  }
}

// Airflow's own sentence for this says less than a reader needs.
const SENTENCES = { 401: "You are not logged in to Airflow, or your session has ended." };

export async function ask(path, query, signal) {
  const params = new URLSearchParams(
    Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== ""),
  );
  const url = `${path}?${params}`;
  let answer = await send(url, {}, signal);
  // Airflow 3.1.0 keeps its token here, and sends no cookie.
  const token = answer.status === 401 && localStorage.getItem("token");
  if (token) answer = await send(url, { authorization: `Bearer ${token}` }, signal);
  const said = await answer.json().catch(() => null);
  if (!answer.ok)
    throw new Problem(
      SENTENCES[answer.status] ?? sentence(said) ?? `Airflow answered with ${answer.status}.`,
      answer.status,
    );
  // Where a plugin could not be imported, Airflow answers every address with its own start page.
  if (!said)
    throw new Problem("Airflow does not serve this page's data: see Admin › Plugins for import errors.", answer.status);
  return said;
}

const send = (url, headers, signal) =>
  fetch(url, { credentials: "same-origin", headers: { accept: "application/json", ...headers }, signal }).catch(
    (error) => {
      if (error.name === "AbortError") throw error;
      throw new Problem("Airflow did not answer.", 0);
    },
  );

function sentence(said) {
  // What is wrong with the address itself is told as a list.
  if (Array.isArray(said?.detail)) return said.detail.map(({ loc, msg }) => `${loc.at(-1)}: ${msg}.`).join(" ");
  return typeof said?.detail === "string" ? said.detail : null;
}

/** Only the newest of several questions counts; those before it are dropped. */
export class Question {
  async ask(path, query) {
    this.drop();
    const mine = (this.pending = new AbortController());
    try {
      return await ask(path, query, mine.signal);
    } finally {
      if (this.pending === mine) this.pending = null;
    }
  }

  drop() {
    this.pending?.abort();
  }
}

/** Asks again every 15 seconds while there is something to wait for and somebody to see it. */
export class Poll {
  constructor(again, needed) {
    this.check = () => needed() && document.visibilityState === "visible" && again();
    document.addEventListener("visibilitychange", this.check);
    this.timer = setInterval(this.check, 15000);
  }

  stop() {
    clearInterval(this.timer);
    document.removeEventListener("visibilitychange", this.check);
  }
}
