import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import { type Cursor, type EventState, type HubEvent, eventOfState } from "../event.js";
import { number, plural, words } from "../format.js";
import { type IconName, icon } from "../icons.js";
import { moveFocus, shortcuts } from "../shortcuts.js";
import { base } from "../styles.js";
import { inline } from "../text.js";

interface FeedState {
  events: EventState[];
  cursor?: Cursor | null;
}

const KEPT = 500;
const OPENING = 100;

/** Only what went wrong stands out. */
function look(type: string): { tone: string; icon: IconName } {
  if (/fail|error|denied|firing/.test(type)) return { tone: "warning", icon: "warning" };
  if (/delet|remov|retract/.test(type)) return { tone: "calm", icon: "fail" };
  if (/creat|succe|logged_in|resolved|publish/.test(type)) return { tone: "calm", icon: "ok" };
  return { tone: "calm", icon: "info" };
}

/** `<hub-feed topic>`: the events of a topic, newest first, to search and to read on while others come in. */
export class HubFeed extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    events: { state: true },
    unseen: { state: true },
    filter: { state: true },
  };
  static override styles = [
    base,
    css`
      header { padding: 8px 8px 8px 16px; border-bottom: 1px solid var(--_line); }
      header input { flex: 1; min-width: 0; max-width: 320px; }
      .scroller { overflow-y: auto; max-height: var(--feed-height, 70vh); }
      .frame { position: relative; }
      .calm { --tone: var(--_text); }
      .calm .icon { color: var(--_muted); }
      .unseen { position: absolute; z-index: 2; top: 8px; left: 50%; translate: -50% 0; border-radius: 16px; }
      li { display: grid; grid-template-columns: minmax(120px, 200px) minmax(0, 1fr) auto; gap: 4px 16px; padding: 8px 16px; border-bottom: 1px solid var(--_line); align-items: start; }
      li:last-child { border-bottom: 0; }
      .facts { display: flex; flex-wrap: wrap; gap: 4px 16px; }
      .facts div { display: flex; gap: 6px; min-width: 0; }
      dt { color: var(--_muted); }
      dd { overflow-wrap: anywhere; }
      details { grid-column: 2 / -1; }
      summary { color: var(--_muted); font-size: 12px; cursor: pointer; width: fit-content; }
      details pre { margin-top: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
      @media (max-width: 719px) {
        li { grid-template-columns: minmax(0, 1fr) auto; }
        .facts, details { grid-column: 1 / -1; }
      }
    `,
  ];
  declare events: HubEvent[];
  declare unseen: HubEvent[];
  declare filter: string;

  constructor() {
    super();
    this.events = [];
    this.unseen = [];
    this.filter = "";
  }

  protected override get empty(): boolean {
    return this.events.length === 0;
  }

  protected override start(): void {
    const printed = this.printedState<FeedState>();
    if (printed && !this.loaded) this.#load(printed);
    const source = this.follow(this.topic, {
      since: printed?.cursor ?? null,
      event: (event) => this.#take(event),
      reset: () => (printed ? this.reload<FeedState>((state) => this.#load(state)) : this.#history(true)),
      change: () => {
        if (!this.loaded && source.state === "live") void this.#history();
        this.requestUpdate();
      },
    });
    if (!this.loaded && source.state === "live") void this.#history();
    this.whileConnected(
      shortcuts({
        "/": () => this.renderRoot.querySelector("input")?.focus(),
        j: () => moveFocus(this.shadowRoot!, "li", 1),
        k: () => moveFocus(this.shadowRoot!, "li", -1),
      }),
    );
  }

  #load(state: FeedState): void {
    this.events = state.events
      .map((event) => eventOfState(this.topic, event))
      .sort((one, other) => (other.offset ?? 0) - (one.offset ?? 0));
    this.unseen = [];
    this.loaded = true;
  }

  async #history(anew = false): Promise<Cursor | null> {
    try {
      const kept = (await hub.topic(this.topic).history(OPENING)).reverse();
      const last = kept[0]?.offset ?? null;
      const newer = anew ? [] : this.events.filter((event) => last === null || event.offset === null || event.offset > last);
      this.events = [...newer, ...kept];
      this.unseen = [];
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      if (code !== undefined && code < 100) return null;
      if (code !== 108 && code !== 103) this.failure = message ?? String(error);
    }
    this.loaded = true;
    return null;
  }

  // While the reader is further down, new events wait above: the rows being read stay where they are.
  #take(event: HubEvent): void {
    if (event.offset !== null && this.events.some((known) => known.offset === event.offset)) return;
    const scroller = this.renderRoot.querySelector(".scroller");
    if (scroller && scroller.scrollTop > 8) this.unseen = [event, ...this.unseen].slice(0, KEPT);
    else this.events = [event, ...this.events].slice(0, KEPT);
  }

  #show(jump: boolean): void {
    if (this.unseen.length) this.events = [...this.unseen, ...this.events].slice(0, KEPT);
    this.unseen = [];
    if (jump) this.renderRoot.querySelector(".scroller")?.scrollTo({ top: 0 });
  }

  #shown(): HubEvent[] {
    const wanted = this.filter.trim().toLowerCase();
    if (!wanted) return this.events;
    return this.events.filter((event) =>
      `${event.type} ${event.sender?.name ?? ""} ${JSON.stringify(event.data)}`.toLowerCase().includes(wanted),
    );
  }

  override render(): TemplateResult {
    const trouble = this.trouble();
    if (trouble) return html`<div class="panel">${trouble}</div>`;
    const shown = this.#shown();
    return html`<section class="panel" part="feed" aria-label="Events of ${this.topic}">
      <header class="spread">
        <input type="search" placeholder="Filter  ( / )" aria-label="Filter events" .value=${this.filter}
          @input=${(event: Event) => (this.filter = (event.target as HTMLInputElement).value)}
          @keydown=${this.#escape} />
        <span class="grow"></span>
        ${this.freshness()}
        <hub-copy .topic=${this.topic} .type=${this.events[0]?.type ?? "message"} .sample=${this.events[0]?.data ?? {}}></hub-copy>
      </header>
      <div class="frame">
        ${this.unseen.length
          ? html`<button class="unseen primary small" @click=${() => this.#show(true)}>${icon("up")} ${number(this.unseen.length)} new</button>`
          : nothing}
        <div class="scroller" tabindex="0" role="region" aria-label="Event list" @scroll=${this.#scrolled}>
          ${!this.loaded
            ? this.skeleton(6)
            : this.empty
              ? this.nothingYet("Nothing has happened yet", "Each event of this topic appears here as it is published.", this.curl("message", { text: "hello" }))
              : shown.length
                ? html`<ul part="list">${repeat(shown, (event) => event.id || event.offset, (event) => this.#row(event))}</ul>`
                : html`<div class="note"><p>None of ${plural(this.events.length, "event")} matches “${this.filter}”.</p></div>`}
        </div>
      </div>
    </section>`;
  }

  #escape = (event: KeyboardEvent): void => {
    if (event.key !== "Escape") return;
    this.filter = "";
    (event.target as HTMLInputElement).blur();
  };

  #scrolled = (event: Event): void => {
    if (this.unseen.length && (event.target as HTMLElement).scrollTop <= 8) this.#show(false);
  };

  #row(event: HubEvent): TemplateResult {
    const { tone, icon: name } = look(event.type);
    const facts: [string, unknown][] =
      typeof event.data === "object" && event.data !== null && !Array.isArray(event.data)
        ? Object.entries(event.data)
        : [["data", event.data]];
    return html`<li tabindex="-1" part="event" class=${Date.now() - event.time.getTime() < 3000 ? "fresh" : ""}>
      <span class="badge ${tone}">${icon(name)}${words(event.type)}</span>
      <dl class="facts">
        ${facts.slice(0, 5).map(([key, value]) => html`<div><dt>${words(key)}</dt><dd>${inline(value)}</dd></div>`)}
        ${event.sender?.name ? html`<div><dt>by</dt><dd>${event.sender.name}</dd></div>` : nothing}
      </dl>
      <hub-time class="small muted" datetime=${event.time.toISOString()}></hub-time>
      ${facts.length > 5
        ? html`<details><summary>All ${facts.length} fields</summary><pre>${JSON.stringify(event.data, null, 2)}</pre></details>`
        : nothing}
    </li>`;
  }
}
