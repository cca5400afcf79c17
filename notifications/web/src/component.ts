import { type CSSResultGroup, LitElement, type PropertyDeclarations, type PropertyValues, type TemplateResult, html, nothing } from "lit";

import { nextFrame } from "./clock.js";
import { hub } from "./connection.js";
import { copyable, curlFor } from "./copy.js";
import type { Cursor } from "./event.js";
import { clock } from "./format.js";
import { currentPage } from "./http.js";
import { icon } from "./icons.js";
import { base } from "./styles.js";
import type { Follower, Topic } from "./topic.js";

/** The states that every component has; a reflected attribute, so that pages can style by them. */
export type Phase = "loading" | "empty" | "live" | "catching-up" | "stale" | "forbidden" | "failed";

/**
 * A component over one topic: reads the state that the server printed into it, follows the topic from that state's
 * cursor, and knows in which of the states it is.
 */
export abstract class HubElement extends LitElement {
  static override styles: CSSResultGroup = base;
  static override properties: PropertyDeclarations = {
    topic: { type: String, reflect: true },
    loaded: { state: true },
    failure: { state: true },
  };

  declare topic: string;
  declare loaded: boolean;
  /** Why the state could not be loaded, for the reader. */
  declare failure: string;

  protected source: Topic | null = null;
  #ends: (() => void)[] = [];

  constructor() {
    super();
    this.topic = "";
    this.loaded = false;
    this.failure = "";
  }

  override connectedCallback(): void {
    super.connectedCallback();
    this.whileConnected(hub.status.watch(() => this.requestUpdate()));
    this.start();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    for (const end of this.#ends.splice(0)) end();
    this.source = null;
  }

  /** Follows what the component shows; called whenever it enters a document. */
  protected abstract start(): void;

  /** Whether there is nothing to show, though all is well. */
  protected get empty(): boolean {
    return false;
  }

  protected whileConnected(end: () => void): void {
    this.#ends.push(end);
  }

  protected follow(name: string, follower: Follower): Topic {
    const source = hub.topic(name);
    this.source = source;
    // From the cursor of its own state, not from the page's: without one it reads what the topic keeps.
    this.whileConnected(source.follow({ since: null, change: () => this.requestUpdate(), ...follower }));
    return source;
  }

  /** The JSON that the server printed as this element's child script; null if it printed none. */
  protected printedState<State>(within: Element = this): State | null {
    const script = within.querySelector(':scope > script[type="application/json"]');
    return script?.textContent ? (JSON.parse(script.textContent) as State) : null;
  }

  /** The same state as the server would print it now: the page is its only source. Throws `Failure`. */
  protected async freshState<State>(): Promise<State | null> {
    const index = [...document.querySelectorAll(this.localName)].indexOf(this);
    const page = await currentPage();
    const element = page.querySelectorAll(this.localName)[index];
    return element ? this.printedState<State>(element) : null;
  }

  /** Loads the state again with `take`, and says so where it fails. Resolves to the new state's cursor. */
  protected async reload<State extends { cursor?: Cursor | null }>(take: (state: State) => void): Promise<Cursor | null> {
    try {
      const state = await this.freshState<State>();
      if (state) take(state);
      this.failure = "";
      this.loaded = true;
      return state?.cursor ?? null;
    } catch (error) {
      this.failure = error instanceof Error ? error.message : String(error);
      return null;
    }
  }

  get phase(): Phase {
    if (this.source?.refusal) return "forbidden";
    if (this.failure) return "failed";
    if (!this.loaded) return "loading";
    const settled = this.empty ? "empty" : "live";
    const link = hub.status.link.state;
    // What was just rendered by the server is not stale because the socket is still being opened.
    if (link === "connecting") return settled;
    if (link !== "live" && link !== "catching-up") return "stale";
    if (link === "catching-up" || this.source?.state === "subscribing") return "catching-up";
    return settled;
  }

  // Any number of events within one animation frame costs one rendering, and a hidden tab renders nothing. The first
  // rendering does not wait: it takes the place of the server's HTML, which would leave a blank frame.
  protected override async scheduleUpdate(): Promise<void> {
    if (this.hasUpdated) await nextFrame();
    super.scheduleUpdate();
  }

  protected override updated(_changed: PropertyValues): void {
    // The server's HTML has done its work; the state stays, for a return to the document.
    for (const child of [...this.children]) if (child.localName !== "script") child.remove();
    const phase = this.phase;
    if (this.getAttribute("phase") !== phase) this.setAttribute("phase", phase);
  }

  /** "stale since 12:03:10" or "catching up"; nothing while the component is up to date. */
  protected freshness(): TemplateResult | typeof nothing {
    const phase = this.phase;
    if (phase === "catching-up") return html`<span class="small muted" part="freshness">catching up</span>`;
    if (phase !== "stale") return nothing;
    const since = hub.status.lastMessage ?? this.source?.lastArrival;
    return html`<span class="small stale-mark" part="freshness">stale${since ? ` since ${clock(new Date(since))}` : ""}</span>`;
  }

  /** The panel for a refused topic or a state that could not be loaded; nothing in all other states. */
  protected trouble(): TemplateResult | null {
    const refusal = this.source?.refusal;
    if (refusal) {
      const unknown = refusal.code === 102;
      return html`<div class="note" part="forbidden">
        ${icon("lock")}
        <p class="title">${unknown ? "No such topic" : "You may not read this"}</p>
        <p>
          ${unknown
            ? html`<code>${this.source?.name}</code> is not declared. A developer can declare it in an app's <code>topics.py</code>; <code>manage.py topics</code> lists what there is.`
            : html`<code>${this.source?.name}</code> is not open to ${hub.user ? hub.user.name : "visitors"}. ${hub.user ? "An administrator can give you access." : "Sign in, or ask an administrator."}`}
        </p>
        <button @click=${() => this.source?.retry()}>${icon("retry")} Ask again</button>
      </div>`;
    }
    if (!this.failure) return null;
    return html`<div class="note" part="failed" role="status">
      ${icon("fail")}
      <p class="title">This could not be loaded</p>
      <p>${this.failure}</p>
      <button @click=${() => location.reload()}>${icon("retry")} Reload the page</button>
    </div>`;
  }

  protected nothingYet(title: string, hint: string, command: string): TemplateResult {
    return html`<div class="note" part="empty">
      ${icon("empty")}
      <p class="title">${title}</p>
      <p>${hint}</p>
      ${copyable(command)}
    </div>`;
  }

  protected skeleton(lines: number): TemplateResult {
    return html`<div class="skeleton" part="loading" role="status" aria-label="Loading">
      ${Array.from({ length: lines }, () => html`<div class="bar line"></div>`)}
    </div>`;
  }

  protected curl(type: string, data: unknown): string {
    return curlFor(this.topic, type, data);
  }
}
