import { LitElement, type TemplateResult, css, html, nothing } from "lit";

import { everySecond, nextFrame } from "../clock.js";
import { config } from "../config.js";
import { hub } from "../connection.js";
import { clock, duration } from "../format.js";
import { describe } from "../status.js";
import { base } from "../styles.js";

/** `<hub-connection>`: the pill that says whether what is on the page is up to date. */
export class HubConnection extends LitElement {
  static override properties = { open: { state: true } };
  static override styles = [
    base,
    css`
      :host { position: relative; }
      .pill { min-height: 28px; padding: 0 12px; border-radius: 14px; font-size: 12px; font-weight: 600; }
      .pill::before { content: ""; width: 8px; height: 8px; border-radius: 50%; background: var(--tone, var(--_muted)); }
      .pill { color: var(--tone, var(--_muted)); text-decoration: none; }
      .panel { position: absolute; z-index: 30; inset-inline-end: 0; top: 36px; width: 280px; padding: 16px; }
      dl { display: grid; grid-template-columns: auto 1fr; gap: 4px 16px; }
      dt { color: var(--_muted); }
      dd { text-align: end; }
      .panel button { margin-top: 12px; width: 100%; }
      @media (max-width: 719px) { .panel { position: fixed; inset-inline: 8px; top: 56px; width: auto; } }
    `,
  ];
  declare open: boolean;

  #ends: (() => void)[] = [];

  constructor() {
    super();
    this.open = false;
  }

  override connectedCallback(): void {
    super.connectedCallback();
    hub.connect();
    const outside = (event: Event): void => {
      if (!event.composedPath().includes(this)) this.open = false;
    };
    document.addEventListener("click", outside);
    this.#ends = [
      hub.status.watch(() => this.requestUpdate()),
      everySecond(() => this.requestUpdate()),
      () => document.removeEventListener("click", outside),
    ];
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    for (const end of this.#ends.splice(0)) end();
  }

  protected override async scheduleUpdate(): Promise<void> {
    if (this.hasUpdated) await nextFrame();
    super.scheduleUpdate();
  }

  #facts(): [string, string][] {
    const { status } = hub;
    const facts: [string, string][] = [["Transport", "WebSocket"]];
    facts.push(["Round trip", status.latency === null ? "not measured yet" : duration(status.latency)]);
    const heard = status.lastMessage;
    facts.push(["Server heard", heard === null ? "not yet" : `${duration(Date.now() - heard)} ago`]);
    const event = status.lastEvent;
    facts.push(["Last event", event === null ? "none yet" : `${duration(Date.now() - event)} ago`]);
    return facts;
  }

  override render(): TemplateResult {
    const link = hub.status.link;
    const words = describe(link);
    const tone = { live: "ok", connecting: "", reconnecting: "warning", "catching-up": "warning", offline: "critical", "signed-out": "" }[link.state];
    const facts = this.#facts();
    const tooltip = facts.map(([name, value]) => `${name}: ${value}`).join("\n");
    // Announced by its kind only: a countdown read aloud each second helps nobody.
    const announced = link.state === "offline" ? `offline since ${clock(link.since)}` : link.state.replace("-", " ");
    return html`
      <button class="pill ${tone}" part="pill" title=${tooltip} aria-expanded=${this.open} aria-label="Connection: ${words}"
        @click=${() => (this.open = !this.open)} @keydown=${this.#key}>${words}</button>
      <span class="hidden-text" role="status">Connection ${announced}</span>
      ${this.open ? this.#panel(facts) : nothing}
    `;
  }

  #key = (event: KeyboardEvent): void => {
    if (event.key === "Escape") this.open = false;
  };

  #panel(facts: [string, string][]): TemplateResult {
    const link = hub.status.link;
    const login = `${config.login}?next=${encodeURIComponent(location.pathname)}`;
    return html`<div class="panel" part="details">
      <dl>${facts.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
      ${link.state === "offline" ? html`<p class="small muted">${link.reason}</p>` : nothing}
      ${link.state === "signed-out"
        ? html`<p class="small">Your session has ended. <a href=${login}>Sign in again</a></p>`
        : link.state === "live" || link.state === "catching-up"
          ? nothing
          : html`<button @click=${() => hub.reconnect()}>Try now</button>`}
    </div>`;
  }
}
