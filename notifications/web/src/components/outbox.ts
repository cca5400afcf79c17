import type { HubEvent } from "../event.js";

/** A message on its way: shown at once, until its event comes back. */
export interface Draft {
  id: number;
  message: string;
  time: Date;
  state: "sending" | "failed";
  /** Why it failed, for the writer. */
  reason: string;
}

/**
 * The messages of this page that have not come back as events. An event is its own message's echo if one of this
 * page's connections published it; the oldest message with the same text is then done, so that none is ever shown
 * twice.
 */
export class Outbox {
  drafts: Draft[] = [];
  #serial = 0;

  constructor(
    private readonly publish: (message: string) => Promise<void>,
    private readonly changed: () => void,
  ) {}

  send(message: string): void {
    const draft: Draft = { id: ++this.#serial, message, time: new Date(), state: "sending", reason: "" };
    this.drafts = [...this.drafts, draft];
    void this.#try(draft);
  }

  retry(draft: Draft): void {
    this.#update(draft, { state: "sending", reason: "" });
    void this.#try(draft);
  }

  drop(draft: Draft): void {
    this.drafts = this.drafts.filter((other) => other.id !== draft.id);
    this.changed();
  }

  /** Whether the event was a message of this page. */
  echo(event: HubEvent, clients: readonly string[]): boolean {
    if (!event.sender || !clients.includes(event.sender.client)) return false;
    const message = (event.data as { message?: unknown }).message;
    const draft = this.drafts.find((other) => other.message === message);
    if (draft) this.drop(draft);
    return true;
  }

  /** The connection is back and everything missed has been shown: what has not come back by now was not accepted. */
  settle(): void {
    for (const draft of this.drafts) {
      if (draft.state === "sending" && draft.reason) this.#update(draft, { state: "failed" });
    }
  }

  async #try(draft: Draft): Promise<void> {
    this.changed();
    try {
      await this.publish(draft.message);
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      if (code === 103) this.#update(draft, { state: "failed", reason: "You may not write here." });
      else if (code === 111) this.#update(draft, { state: "failed", reason: "Too fast. Wait a moment." });
      else if (code !== undefined && code >= 100) this.#update(draft, { state: "failed", reason: message ?? `error ${code}` });
      // Lost on the way, there or back: only the recovered events can tell which (see `settle`).
      else if (code === 11 || code === 2 || code === undefined) this.#update(draft, { reason: "The connection broke." });
      else this.#update(draft, { state: "failed", reason: "The hub does not answer." });
    }
  }

  #update(draft: Draft, change: Partial<Draft>): void {
    this.drafts = this.drafts.map((other) => (other.id === draft.id ? { ...other, ...change } : other));
    this.changed();
  }
}
