import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import { type Cursor, type HubEvent, hasTexts, isTime } from "../event.js";
import { absolute, minute, sameDay } from "../format.js";
import { post } from "../http.js";
import { icon } from "../icons.js";
import { type Severity, badge, rank, severityOf } from "../severity.js";
import { base } from "../styles.js";
import { linked } from "../text.js";

interface Banner {
  id: number;
  text: string;
  severity: Severity;
  starts_at: string;
  ends_at: string | null;
  dismissible: boolean;
}

interface BannersState {
  banners: Banner[];
  /** Ids of those that have started. */
  current?: number[];
  /** Ids that the user has closed before; an edit of one of these does not bring it back. */
  dismissed?: number[];
  cursors: Record<string, Cursor | null>;
}

/** Whether it can be shown: rendering one that is not whole would throw, then and for ever. */
function isBanner(data: unknown): data is Banner {
  if (!hasTexts(data, "text", "severity") || typeof data["id"] !== "number") return false;
  const { starts_at, ends_at } = data;
  return isTime(starts_at) && isTime(ends_at ?? starts_at);
}

/** The broadcast that an event is about; undefined if it names none. */
const idIn = (data: unknown): number | undefined => {
  const id = (data as { id?: unknown } | null)?.id;
  return typeof id === "number" ? id : undefined;
};

const VISITOR_KEY = "hub-dismissed";
/** The longest time that a browser's timer can wait. */
const LONGEST = 2 ** 31 - 1;

/** `<hub-banners>`: what administrators tell everyone, from its start to its end, until it is dismissed. */
export class HubBanners extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    dismiss: { type: String },
    unfolded: { state: true },
    refused: { state: true },
  };
  static override styles = [
    base,
    css`
      .banner { display: flex; align-items: start; gap: 12px; padding: 8px 16px; background: color-mix(in oklab, var(--tone) 12%, var(--_surface)); border-bottom: 1px solid color-mix(in oklab, var(--tone) 40%, var(--_surface)); }
      .badge { min-height: 24px; }
      .text { flex: 1; min-width: 0; overflow-wrap: anywhere; padding: 2px 0; white-space: pre-line; }
      .text a { color: inherit; }
      .until { white-space: nowrap; padding: 4px 0; }
      button.plain { min-height: 24px; min-width: 24px; color: inherit; padding: 0; }
      .fold { display: block; width: 100%; min-height: 24px; padding: 2px 16px; border: 0; border-bottom: 1px solid var(--_line); border-radius: 0; background: var(--_raised); font-size: 12px; text-align: start; }
      .refused { color: var(--_critical); padding: 4px 16px; }
      @media (max-width: 719px) { .until { display: none; } }
    `,
  ];
  /** Address that dismisses, with `{id}` in the broadcast's place. */
  declare dismiss: string;
  declare unfolded: boolean;
  declare refused: string;

  #banners = new Map<number, Banner>();
  #dismissed = new Set<number>();
  /** Banners of which the server's clock has told that they started: this machine's may be wrong. */
  #started = new Set<number>();
  /** Milliseconds by which the server's clock is ahead of this machine's, as far as an event has told. */
  #ahead = 0;
  #timer: number | undefined;

  constructor() {
    super();
    this.dismiss = "/broadcasts/{id}/dismiss/";
    this.unfolded = false;
    this.refused = "";
  }

  protected override get empty(): boolean {
    return this.#shown().length === 0;
  }

  protected override start(): void {
    const printed = this.printedState<BannersState>();
    if (!hub.user) this.#dismissed = new Set(JSON.parse(localStorage.getItem(VISITOR_KEY) ?? "[]") as number[]);
    if (printed) this.#load(printed);
    this.loaded = true;
    const cursors = printed?.cursors ?? this.#audiences();
    for (const [topic, cursor] of Object.entries(cursors)) {
      this.whileConnected(
        hub.topic(topic).follow({
          since: cursor,
          event: (event, live) => this.#take(event, live),
          reset: () => this.#again(topic),
        }),
      );
    }
    if (hub.personal) this.whileConnected(hub.personal.on("broadcast.dismissed", (event) => this.#forget(idIn(event.data))));
    this.whileConnected(() => window.clearTimeout(this.#timer));
    this.#schedule();
  }

  /** The topics of a page whose server printed none. */
  #audiences(): Record<string, null> {
    const topics = ["broadcasts:all"];
    if (hub.user) topics.push("broadcasts:users");
    if (hub.user?.staff) topics.push("broadcasts:staff");
    return Object.fromEntries(topics.map((topic) => [topic, null]));
  }

  #load(state: BannersState): void {
    this.#banners = new Map(state.banners.map((banner) => [banner.id, banner]));
    this.#started = new Set(state.current ?? []);
    for (const id of state.dismissed ?? []) this.#dismissed.add(id);
    this.#schedule();
  }

  async #again(topic: string): Promise<Cursor | null> {
    try {
      const state = await this.freshState<BannersState>();
      if (!state) return null;
      this.#load(state);
      return state.cursors[topic] ?? null;
    } catch {
      // The banners that are known stay; the next event or page brings the rest.
      return null;
    }
  }

  #take(event: HubEvent, live: boolean): void {
    const banner = event.data;
    const id = idIn(banner);
    if (event.type === "broadcast.retracted" && id !== undefined) this.#banners.delete(id);
    else if (event.type === "broadcast.published" && isBanner(banner)) {
      const then = event.time.getTime();
      if (live) this.#ahead = then - Date.now();
      this.#banners.set(banner.id, banner);
      // Whenever the event arrives, what had started when it was published has started now; an edit can delay it.
      if (new Date(banner.starts_at).getTime() <= then) this.#started.add(banner.id);
      else this.#started.delete(banner.id);
    }
    this.#schedule();
  }

  /** The time by the server's clock, which the banners' times are of. */
  #now(): number {
    return Date.now() + this.#ahead;
  }

  #shown(): Banner[] {
    const now = this.#now();
    return [...this.#banners.values()]
      .filter((banner) => !this.#dismissed.has(banner.id))
      .filter((banner) => this.#started.has(banner.id) || new Date(banner.starts_at).getTime() <= now)
      .filter((banner) => !banner.ends_at || new Date(banner.ends_at).getTime() > now)
      .sort((one, other) => rank(severityOf(one.severity)) - rank(severityOf(other.severity)) || other.starts_at.localeCompare(one.starts_at));
  }

  // Renders now, and again when the next banner starts or ends.
  #schedule(): void {
    this.requestUpdate();
    window.clearTimeout(this.#timer);
    const now = this.#now();
    const edges = [...this.#banners.values()]
      .flatMap((banner) => [banner.starts_at, banner.ends_at])
      .map((edge) => (edge ? new Date(edge).getTime() : 0))
      .filter((edge) => edge > now);
    if (edges.length) this.#timer = window.setTimeout(() => this.#schedule(), Math.min(Math.min(...edges) - now + 50, LONGEST));
  }

  #forget(id: number | undefined): void {
    if (id !== undefined) this.#dismissed.add(id);
    this.requestUpdate();
  }

  async #close(banner: Banner): Promise<void> {
    this.refused = "";
    this.#forget(banner.id);
    if (!hub.user) {
      localStorage.setItem(VISITOR_KEY, JSON.stringify([...this.#dismissed].slice(-200)));
      return;
    }
    try {
      await post(this.dismiss.replace("{id}", String(banner.id)));
    } catch (error) {
      this.#dismissed.delete(banner.id);
      this.refused = `Not dismissed: ${(error as Error).message}`;
    }
  }

  // Both regions are always there: a region that comes with its text is not read aloud.
  override render(): TemplateResult {
    const shown = this.#shown();
    const visible = this.unfolded ? shown : shown.slice(0, 1);
    const critical = visible.filter((banner) => severityOf(banner.severity) === "critical");
    const others = visible.filter((banner) => severityOf(banner.severity) !== "critical");
    const more = shown.length - 1;
    return html`<section aria-label="Announcements" part="banners">
      <div role="alert">${this.#list(critical)}</div>
      <div role="status">${this.#list(others)}</div>
      ${more > 0
        ? html`<button class="fold" aria-expanded=${this.unfolded} @click=${() => (this.unfolded = !this.unfolded)}>${this.unfolded ? "Show one" : `${more} more`}</button>`
        : nothing}
      ${this.refused ? html`<p class="refused small" role="alert">${this.refused}</p>` : nothing}
    </section>`;
  }

  #list(banners: Banner[]): unknown {
    return repeat(banners, (banner) => banner.id, (banner) => {
      const severity = severityOf(banner.severity);
      const end = banner.ends_at ? new Date(banner.ends_at) : null;
      return html`<div class="banner ${severity}" part="banner ${severity}">
        ${badge(severity, severity, severity)}
        <p class="text">${linked(banner.text)}</p>
        ${end ? html`<span class="small until" title=${absolute(end)}>until ${sameDay(end, new Date()) ? minute(end) : absolute(end)}</span>` : nothing}
        ${banner.dismissible ? html`<button class="plain" aria-label="Dismiss for good" title="Dismiss for good" @click=${() => this.#close(banner)}>${icon("close")}</button>` : nothing}
      </div>`;
    });
  }
}
