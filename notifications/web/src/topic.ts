import type { Centrifuge, ClientInfo, HistoryOptions, PublicationContext, SubscribedContext, Subscription } from "centrifuge";

import { cursors } from "./config.js";
import { type Cursor, type HubEvent, type Sender, eventOf, senderOf } from "./event.js";
import type { Status } from "./status.js";

/** Why the server refuses a topic: a code of the protocol (102 unknown, 103 forbidden, …) and its words. */
export interface Refusal {
  code: number;
  reason: string;
}

export type TopicState = "idle" | "subscribing" | "live" | "refused";

/** One reader of a topic. Each has a cursor of its own and gets each event once, in order. */
export interface Follower {
  /**
   * Position that the follower's data already contains: it is sent what came after. Left out, it is the one that the
   * page's view took (`with_cursors`), while the page opens; null is the present. Where nobody could tell the position
   * the data is loaded again.
   */
  since?: Cursor | null | "unknown";
  /** Asks the server for join and leave events. */
  presence?: boolean;
  /** `live` is false for what was published before it came here: recovered, read from the history, or held back. */
  event?(event: HubEvent, live: boolean): void;
  /**
   * Events were lost that the topic no longer keeps: load the state again. Resolves to the cursor of the new state;
   * what is published meanwhile waits for it.
   */
  reset?(): Promise<Cursor | null | void> | void;
  /** The topic's state has changed. */
  change?(): void;
  join?(who: Sender): void;
  leave?(who: Sender): void;
}

interface Slot {
  follower: Follower;
  offset: number | null;
  epoch: string;
  /** What its data lacks is not known. */
  astray: boolean;
  /** Events that wait until the follower's state is loaded; null while it is up to date. */
  waiting: HubEvent[] | null;
}

/** Most publications one history call brings; the server's own limit. */
export const PAGE = 300;

/** One topic over the page's shared connection; made by `hub.topic(name)`. */
export class Topic {
  state: TopicState = "idle";
  refusal: Refusal | null = null;
  /** The time at which the last event arrived here, in milliseconds. */
  lastArrival: number | null = null;

  #slots = new Set<Slot>();
  #subscription: Subscription | null = null;
  #starting = false;
  #offset: number | null = null;
  #epoch = "";
  #replaying: number | null = null;
  #wasLive = false;
  #histories = new Map<number, Promise<HubEvent[]>>();

  constructor(
    readonly name: string,
    private readonly client: () => Centrifuge,
    private readonly status: Status,
  ) {}

  /** Topics `#…` are subscribed by the server itself. */
  get personal(): boolean {
    return this.name.startsWith("#");
  }

  /** Calls `listener` with each event of `type` ("*" for every one) and keeps the topic subscribed. Returns its end. */
  on(type: string, listener: (event: HubEvent) => void, since?: Cursor | null): () => void {
    return this.follow({
      since,
      event: (event) => {
        if (type === "*" || type === event.type) listener(event);
      },
    });
  }

  follow(follower: Follower): () => void {
    const since = follower.since === undefined ? this.#opening() : follower.since;
    const astray = since === "unknown";
    const cursor = astray ? null : since;
    const slot: Slot = { follower, offset: cursor?.offset ?? null, epoch: cursor?.epoch ?? "", astray, waiting: null };
    this.#slots.add(slot);
    if (this.state === "live") void this.#join(slot);
    else this.#start();
    return () => {
      this.#slots.delete(slot);
      // Not at once: a component that is moved in the document leaves and comes back in the same tick.
      window.setTimeout(() => this.#stopIfUnused(), 0);
    };
  }

  /** The newest `limit` events that the topic keeps, oldest first. Rejects with the server's error. */
  history(limit = PAGE): Promise<HubEvent[]> {
    const known = this.#histories.get(limit);
    if (known) return known;
    const answer = this.#read({ limit, reverse: true })
      .then((events) => events.reverse())
      .finally(() => this.#histories.delete(limit));
    this.#histories.set(limit, answer);
    return answer;
  }

  /** Up to `limit` kept events before `offset`, oldest first. */
  async before(offset: number, limit: number): Promise<HubEvent[]> {
    const events = await this.#read({ limit, reverse: true, since: { offset, epoch: this.#epoch } });
    return events.reverse();
  }

  /** Publishes `data` as this user, where the topic allows it. Rejects with the server's error. */
  async publish(data: unknown): Promise<void> {
    if (this.#subscription) await this.#subscription.publish(data);
    else await this.client().publish(this.name, data);
  }

  /** Who is connected to the topic now, one entry a connection. */
  async presence(): Promise<Sender[]> {
    const { clients } = await this.client().presence(this.name);
    return Object.values(clients).map((info) => senderOf(info)!);
  }

  /** Asks again after a refusal. */
  retry(): void {
    this.refusal = null;
    if (this.#subscription) this.#subscription.subscribe();
    else this.#start();
  }

  async #read(options: HistoryOptions): Promise<HubEvent[]> {
    const { publications } = await this.client().history(this.name, options);
    return publications.map((publication) => eventOf(this.name, publication));
  }

  /**
   * The cursor of the page's view, for those who follow while the page opens: who comes to a topic later, when it has
   * been live, begins at the present.
   */
  #opening(): Cursor | null | "unknown" {
    if (!cursors.has(this.name) || (this.#wasLive && document.readyState === "complete")) return null;
    return cursors.get(this.name) ?? "unknown";
  }

  // One microtask later, so that all followers of a page are known and the lowest cursor serves them all.
  #start(): void {
    if (this.#starting || this.#subscription || this.personal) return;
    this.#starting = true;
    queueMicrotask(() => {
      this.#starting = false;
      if (this.#slots.size && !this.#subscription) this.#subscribe();
    });
  }

  #subscribe(): void {
    const cursors = [...this.#slots].filter((slot) => slot.offset !== null);
    const epoch = cursors[0]?.epoch ?? "";
    const offsets = cursors.filter((slot) => slot.epoch === epoch).map((slot) => slot.offset!);
    const subscription = this.client().newSubscription(this.name, {
      since: offsets.length ? { offset: Math.min(...offsets), epoch } : null,
      joinLeave: [...this.#slots].some((slot) => slot.follower.presence),
    });
    this.#subscription = subscription;
    subscription.on("subscribing", () => this.subscribing());
    subscription.on("subscribed", (context) => this.subscribed(context));
    subscription.on("publication", (publication) => this.published(publication));
    subscription.on("join", ({ info }) => this.#presence("join", info));
    subscription.on("leave", ({ info }) => this.#presence("leave", info));
    subscription.on("unsubscribed", ({ code, reason }) => this.unsubscribed(code, reason));
    subscription.subscribe();
  }

  #stopIfUnused(): void {
    const subscription = this.#subscription;
    if (this.#slots.size || !subscription) return;
    this.#subscription = null;
    subscription.removeAllListeners();
    subscription.unsubscribe();
    this.client().removeSubscription(subscription);
    this.status.settled(this.name, 0);
    this.state = "idle";
  }

  subscribing(): void {
    this.status.settling(this.name);
    this.#change("subscribing");
  }

  subscribed(context: Pick<SubscribedContext, "recoverable" | "wasRecovering" | "recovered" | "streamPosition">): void {
    const again = this.#epoch !== "" || this.lastArrival !== null;
    const lost = context.wasRecovering ? !context.recovered : again && !context.recoverable;
    const position = context.streamPosition;
    this.#epoch = position?.epoch ?? "";
    this.#offset = position?.offset ?? null;
    this.#replaying = 0;
    // The SDK emits the recovered publications in the same task, right after this event.
    queueMicrotask(() => {
      this.status.settled(this.name, this.#replaying ?? 0);
      this.#replaying = null;
    });
    for (const slot of this.#slots) {
      if (lost || slot.astray || (slot.epoch && this.#epoch && slot.epoch !== this.#epoch)) void this.#reset(slot);
      // It came after the subscribe was sent, from further back than that asked for.
      else if (slot.offset !== null && slot.offset < (this.#offset ?? 0)) void this.#join(slot);
    }
    this.#change("live");
  }

  unsubscribed(code: number, reason: string): void {
    this.status.settled(this.name, 0);
    // 0 is our own call; any other code is the server's word.
    if (code === 0) return;
    this.refusal = { code, reason };
    this.#change("refused");
  }

  published(publication: PublicationContext): void {
    const event = eventOf(this.name, publication);
    this.lastArrival = this.status.lastEvent = Date.now();
    if (this.#replaying !== null) this.#replaying += 1;
    if (event.offset !== null) this.#offset = event.offset;
    for (const slot of this.#slots) this.#deliver(slot, event, this.#replaying === null);
  }

  #deliver(slot: Slot, event: HubEvent, live: boolean): void {
    if (slot.waiting) {
      slot.waiting.push(event);
      return;
    }
    if (event.offset !== null) {
      if (slot.offset !== null && event.offset <= slot.offset) return;
      slot.offset = event.offset;
      slot.epoch = this.#epoch;
    }
    try {
      slot.follower.event?.(event, live);
    } catch (error) {
      // The SDK stops the whole connection when a handler throws: one reader's mistake is its own.
      reportError(error);
    }
  }

  // A follower that comes when the topic is live already reads what lies between its cursor and now.
  async #join(slot: Slot): Promise<void> {
    if (slot.astray) return this.#reset(slot);
    if (slot.offset === null || slot.waiting) return;
    if (slot.epoch !== this.#epoch) return this.#reset(slot);
    if (this.#offset !== null && slot.offset >= this.#offset) return;
    slot.waiting = [];
    try {
      const missed = await this.#read({ limit: PAGE, since: { offset: slot.offset, epoch: slot.epoch } });
      // Something was published after its cursor: an answer without that is of a topic that no longer keeps it.
      if (missed.length < PAGE && missed[0]?.offset === slot.offset + 1) return this.#release(slot, missed);
    } catch {
      // It cannot be read: the state is loaded again, like after any other loss.
    }
    await this.#load(slot);
  }

  async #reset(slot: Slot): Promise<void> {
    if (slot.waiting) return;
    slot.waiting = [];
    await this.#load(slot);
  }

  // What waits already goes on waiting: the new state's cursor tells which of it is new, and without one all of it is.
  async #load(slot: Slot): Promise<void> {
    slot.offset = null;
    slot.epoch = this.#epoch;
    slot.astray = false;
    try {
      const cursor = await slot.follower.reset?.();
      if (cursor) {
        slot.offset = cursor.offset;
        slot.epoch = cursor.epoch;
      }
    } catch (error) {
      reportError(error);
    }
    this.#release(slot, []);
  }

  #release(slot: Slot, before: HubEvent[]): void {
    const waiting = slot.waiting ?? [];
    slot.waiting = null;
    for (const event of [...before, ...waiting]) this.#deliver(slot, event, false);
  }

  #presence(kind: "join" | "leave", info: ClientInfo): void {
    for (const slot of this.#slots) slot.follower[kind]?.(senderOf(info)!);
  }

  #change(state: TopicState): void {
    if (state === "live") {
      this.refusal = null;
      this.#wasLive = true;
    }
    this.state = state;
    for (const slot of this.#slots) slot.follower.change?.();
  }
}
