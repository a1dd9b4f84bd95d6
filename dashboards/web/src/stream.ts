/** The connection to the server: server-sent events, tried again with a growing wait, and watched for silence. */
export type LinkState = { kind: "connecting" } | { kind: "live" } | { kind: "waiting"; until: number };

const EVENTS = ["fleet", "heat", "jobs", "curve", "incidents", "health", "skipped"] as const;
export type EventName = (typeof EVENTS)[number];

const WAIT_FIRST_MS = 500;
const WAIT_MAX_MS = 10_000;
/** There is an event every second: after five without one the connection is dead, whatever the browser thinks. */
const SILENT_MS = 5_000;

export class Stream {
  lastEvent: number | null = null;
  state: LinkState = { kind: "connecting" };
  #source: EventSource | null = null;
  #failures = 0;
  #timer = 0;

  constructor(
    /** Where to connect: asked each time, for what is looked at may have changed. */
    private readonly url: () => string,
    private readonly onEvent: (name: EventName, data: unknown) => void,
    private readonly onState: (state: LinkState) => void,
  ) {}

  /** Connect anew, at once: something else is looked at. */
  again(): void {
    this.#source?.close();
    clearTimeout(this.#timer);
    this.open();
  }

  open(): void {
    this.#set({ kind: "connecting" });
    const source = new EventSource(this.url());
    this.#source = source;
    source.onerror = () => this.#retry();
    for (const name of EVENTS) {
      source.addEventListener(name, (event) => {
        this.#heard();
        this.onEvent(name, JSON.parse((event as MessageEvent<string>).data));
      });
    }
    this.#watch();
  }

  #heard(): void {
    this.lastEvent = performance.now();
    this.#failures = 0;
    if (this.state.kind !== "live") this.#set({ kind: "live" });
    this.#watch();
  }

  #watch(): void {
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => this.#retry(), SILENT_MS);
  }

  #retry(): void {
    this.#source?.close();
    clearTimeout(this.#timer);
    const wait = Math.min(WAIT_MAX_MS, WAIT_FIRST_MS * 2 ** this.#failures) * (0.75 + Math.random() / 2);
    this.#failures += 1;
    this.#set({ kind: "waiting", until: performance.now() + wait });
    this.#timer = window.setTimeout(() => this.open(), wait);
  }

  #set(state: LinkState): void {
    this.state = state;
    this.onState(state);
  }
}
