import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";

import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import type { Sender } from "../event.js";
import { plural } from "../format.js";
import { icon } from "../icons.js";
import { base } from "../styles.js";

/** Join and leave events are sent at best effort; the list is read anew so often. */
const REFRESH = 30_000;
const NAMED = 50;

/** `<hub-presence topic>`: who is connected to the topic now, one line a person. */
export class HubPresence extends HubElement {
  static override properties: PropertyDeclarations = { ...HubElement.properties, denied: { state: true } };
  static override styles = [
    base,
    css`
      section { padding: 12px 16px; }
      h2 { font-size: 12px; line-height: 16px; font-weight: 600; color: var(--_muted); margin-bottom: 8px; }
      ul { display: flex; flex-wrap: wrap; gap: 4px 16px; }
      li { display: flex; align-items: center; gap: 8px; min-width: 0; overflow-wrap: anywhere; }
      li::before { content: ""; width: 8px; height: 8px; border-radius: 50%; background: var(--_ok); flex: none; }
      :host([phase="stale"]) li::before { background: var(--_muted); }
      .bar { width: 12ch; }
    `,
  ];
  declare denied: boolean;

  #connections = new Map<string, Sender>();

  constructor() {
    super();
    this.denied = false;
  }

  protected override get empty(): boolean {
    return this.#connections.size === 0;
  }

  protected override start(): void {
    const source = this.follow(this.topic, {
      presence: true,
      join: (who) => this.#put(who),
      leave: (who) => this.#remove(who),
      change: () => {
        if (source.state === "live") void this.#read();
        this.requestUpdate();
      },
    });
    if (source.state === "live") void this.#read();
    const timer = window.setInterval(() => {
      if (!document.hidden && source.state === "live") void this.#read();
    }, REFRESH);
    this.whileConnected(() => window.clearInterval(timer));
  }

  async #read(): Promise<void> {
    try {
      const here = await hub.topic(this.topic).presence();
      this.#connections = new Map(here.map((who) => [who.client, who]));
      this.denied = false;
      this.loaded = true;
    } catch (error) {
      const { code } = error as { code?: number };
      if (code === 103 || code === 108) this.denied = true;
    }
    this.requestUpdate();
  }

  #put(who: Sender): void {
    this.#connections.set(who.client, who);
    this.requestUpdate();
  }

  #remove(who: Sender): void {
    this.#connections.delete(who.client);
    this.requestUpdate();
  }

  override render(): TemplateResult {
    const people = new Map([...this.#connections.values()].map((who) => [who.user || who.client, who.name || "a visitor"]));
    const names = [...people.values()].sort((one, other) => one.localeCompare(other));
    return html`<section class="panel" part="presence" aria-label="Who is here">
      <h2>${this.loaded ? html`${plural(names.length, "person", "people")} here` : "Who is here"} ${this.freshness()}</h2>
      ${this.denied || this.source?.refusal
        ? html`<p class="small muted">${icon("lock")} Who is here is not shown to you. An administrator can allow it.</p>`
        : !this.loaded
          ? html`<div class="bar line" role="status" aria-label="Loading"></div>`
          : names.length
            ? html`<ul>${names.slice(0, NAMED).map((name) => html`<li>${name}</li>`)}</ul>
                ${names.length > NAMED ? html`<p class="small muted">and ${names.length - NAMED} more</p>` : nothing}`
            : html`<p class="small muted">Nobody is connected. Open this page in a second browser to see a name appear.</p>`}
    </section>`;
  }
}
