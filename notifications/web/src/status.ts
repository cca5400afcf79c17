import { everySecond } from "./clock.js";
import { clock, number } from "./format.js";

/** What the connection pill can say. */
export type Link =
  | { state: "connecting" }
  | { state: "live" }
  | { state: "reconnecting"; seconds: number | null }
  | { state: "catching-up"; count: number }
  | { state: "offline"; since: Date; reason: string }
  | { state: "signed-out" };

/** Slack for timers and networks that deliver a ping a little late. */
const SLACK = 1500;
/** How long an outage is called reconnecting before it is called offline. */
const OUTAGE = 30_000;
/** A count that is shown for less cannot be read. */
const READABLE = 900;

/**
 * The truth about the connection, from what was observed on the socket. The server's silence counts for more than the
 * state of the SDK, which learns of a dead link only some seconds after its ping is overdue.
 */
export class Status {
  /** Milliseconds between server pings; the connect reply says it. */
  ping = 25_000;
  lastMessage: number | null = null;
  lastEvent: number | null = null;
  /** Milliseconds from a command to its reply. */
  latency: number | null = null;

  #phase: "idle" | "connecting" | "connected" | "stopped" = "idle";
  #reason = "";
  #signedOut = false;
  #everLive = false;
  #began = Date.now();
  #lost: number | null = null;
  #nextTry: number | null = null;
  #settling = new Set<string>();
  #replayed = 0;
  #replayedUntil = 0;
  #shown = "";
  #watchers = new Set<(link: Link) => void>();

  constructor() {
    everySecond(() => this.refresh());
    for (const name of ["online", "offline"]) window.addEventListener(name, () => this.refresh());
  }

  get link(): Link {
    const now = Date.now();
    if (this.#signedOut) return { state: "signed-out" };
    if (this.#phase === "stopped") return { state: "offline", since: this.#since(now), reason: this.#reason };
    if (this.#phase === "connected") {
      const silent = this.lastMessage !== null && now - this.lastMessage > this.ping + SLACK;
      if (silent) return { state: "offline", since: this.#since(now), reason: "The server has fallen silent." };
      const behind = this.#settling.size > 0;
      // The subscriptions of a page that was just opened are part of its connecting.
      if (behind && !this.#everLive) return { state: "connecting" };
      if (behind || now < this.#replayedUntil) return { state: "catching-up", count: this.#replayed };
      return { state: "live" };
    }
    const outage = now - (this.#lost ?? this.#began);
    if (!navigator.onLine) {
      return { state: "offline", since: this.#since(now), reason: "This device has no network." };
    }
    if (outage > OUTAGE) return { state: "offline", since: this.#since(now), reason: "The hub does not answer." };
    if (this.#lost === null && outage < 5000) return { state: "connecting" };
    return { state: "reconnecting", seconds: this.secondsToTry };
  }

  /** Seconds until the next try to connect; null while one is under way. */
  get secondsToTry(): number | null {
    if (this.#nextTry === null) return null;
    const left = Math.ceil((this.#nextTry - Date.now()) / 1000);
    return left > 0 ? left : null;
  }

  get signedOut(): boolean {
    return this.#signedOut;
  }

  watch(watcher: (link: Link) => void): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  received(): void {
    this.lastMessage = Date.now();
  }

  connecting(): void {
    if (this.#phase === "connected") this.#lost = this.lastMessage ?? Date.now();
    if (this.#phase !== "connecting") this.#phase = "connecting";
    this.refresh();
  }

  trying(inMilliseconds: number): void {
    this.#nextTry = Date.now() + inMilliseconds;
    this.refresh();
  }

  connected(): void {
    this.#phase = "connected";
    this.#lost = null;
    this.#nextTry = null;
    this.#reason = "";
    this.refresh();
  }

  stopped(reason: string): void {
    this.#lost ??= this.lastMessage ?? Date.now();
    this.#phase = "stopped";
    this.#reason = reason;
    this.refresh();
  }

  setSignedOut(signedOut: boolean): void {
    this.#signedOut = signedOut;
    this.refresh();
  }

  /** A topic asks for what it missed: the page is not up to date until `settled`. */
  settling(topic: string): void {
    if (!this.#settling.size && Date.now() > this.#replayedUntil) this.#replayed = 0;
    this.#settling.add(topic);
    this.refresh();
  }

  settled(topic: string, replayed: number): void {
    this.#settling.delete(topic);
    this.#replayed += replayed;
    if (replayed) {
      this.#replayedUntil = Date.now() + READABLE;
      window.setTimeout(() => this.refresh(), READABLE + 20);
    }
    this.refresh();
  }

  /** Tells the watchers if what the pill says has changed. */
  refresh(): void {
    const link = this.link;
    if (link.state === "live") this.#everLive = true;
    const shown = describe(link);
    if (shown === this.#shown) return;
    this.#shown = shown;
    for (const watcher of this.#watchers) watcher(link);
  }

  #since(now: number): Date {
    return new Date(this.lastMessage ?? this.#lost ?? Math.min(this.#began, now));
  }
}

/** The pill's words. */
export function describe(link: Link): string {
  switch (link.state) {
    case "connecting":
      return "connecting…";
    case "live":
      return "live";
    case "reconnecting":
      return link.seconds === null ? "reconnecting…" : `reconnecting… (${link.seconds} s)`;
    case "catching-up":
      return link.count ? `catching up (${number(link.count)})` : "catching up";
    case "offline":
      return `offline since ${clock(link.since)}`;
    case "signed-out":
      return "signed out";
  }
}
