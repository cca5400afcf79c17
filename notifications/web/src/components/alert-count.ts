import { type TemplateResult, css, html, nothing } from "lit";

import { announce } from "../announce.js";
import { needsUser } from "../attention.js";
import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import type { Cursor, HubEvent } from "../event.js";
import { base } from "../styles.js";
import { type Alert, isAlert, open } from "./alert.js";

interface CountState {
  count: number;
  /** The alerts that are counted, where the server sends them. */
  ids?: number[];
  cursor?: Cursor | null;
}

/**
 * `<hub-alert-count>`: how many alerts fire that nobody has acknowledged. It also puts the number before the
 * document's title and a dot on its icon, in hidden tabs too, and rings for new critical ones if the user wants that.
 */
export class HubAlertCount extends HubElement {
  static override styles = [
    base,
    css`
      :host { display: contents; }
      .count { min-width: 20px; padding: 0 6px; border-radius: 10px; background: var(--_critical); color: var(--_surface); font-size: 12px; line-height: 20px; font-weight: 600; text-align: center; }
    `,
  ];

  #open = new Set<number>();
  /** Open alerts that the server counted without naming them. */
  #unnamed = 0;
  #settled = new Set<number>();

  constructor() {
    super();
    this.topic = "alerts:all";
  }

  protected override start(): void {
    const printed = this.printedState<CountState>();
    if (printed && !this.loaded) this.#load(printed);
    const source = this.follow(this.topic, {
      since: printed?.cursor ?? null,
      event: (event) => this.#take(event, true),
      reset: () => this.reload<CountState>((state) => this.#load(state)),
      change: () => {
        if (!this.loaded && source.state === "live") void this.#history();
      },
    });
  }

  // A page whose server prints no count: what the topic keeps is the best that can be known.
  async #history(): Promise<void> {
    this.loaded = true;
    for (const event of await hub.topic(this.topic).history().catch(() => [])) this.#take(event, false);
  }

  get count(): number {
    return this.#open.size + this.#unnamed;
  }

  #load(state: CountState): void {
    this.#open = new Set(state.ids ?? []);
    this.#unnamed = Math.max(0, state.count - this.#open.size);
    this.#settled.clear();
    this.loaded = true;
    this.#show();
  }

  #take(event: HubEvent, live: boolean): void {
    const alert = event.data;
    if (!event.type.startsWith("alert.") || !isAlert(alert)) return;
    const known = this.#open.has(alert.id) || this.#settled.has(alert.id);
    if (open(alert)) {
      // One that has fired before this page knew it is among the unnamed.
      if (!known && alert.count > 1 && this.#unnamed) this.#unnamed -= 1;
      if (live && !this.#open.has(alert.id) && event.type === "alert.firing") this.#ring(alert, event);
      this.#open.add(alert.id);
      this.#settled.delete(alert.id);
    } else {
      const counted = event.type === "alert.acknowledged" || !alert.acknowledged_by;
      if (!known && counted && this.#unnamed) this.#unnamed -= 1;
      this.#open.delete(alert.id);
      this.#settled.add(alert.id);
    }
    this.#show();
  }

  #ring(alert: Alert, event: HubEvent): void {
    announce({ id: event.id, title: `${alert.severity}: ${alert.name}`, text: alert.summary, url: "/alerts/", severity: alert.severity, time: event.time });
  }

  #show(): void {
    needsUser(this.count);
    this.requestUpdate();
  }

  override render(): TemplateResult | typeof nothing {
    if (this.source?.refusal || !this.count) return nothing;
    const count = this.count;
    return html`<span class="count" part="count" title="${count} firing and not acknowledged">${count}<span class="hidden-text"> firing and not acknowledged</span></span>`;
  }
}
