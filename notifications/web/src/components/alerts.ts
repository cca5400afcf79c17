import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import type { Cursor } from "../event.js";
import { duration, minute, number, plural } from "../format.js";
import { post } from "../http.js";
import { icon } from "../icons.js";
import { badge, severityBadge, severityOf } from "../severity.js";
import { moveFocus, shortcuts } from "../shortcuts.js";
import { base } from "../styles.js";
import { inline, linked, safeAddress } from "../text.js";
import { type Alert, type AlertsState, byUrgency, isAlert, matches, open } from "./alert.js";

const RESOLVED = 50;

/** `<hub-alerts topic>`: what fires, who has taken it, and what is over. */
export class HubAlerts extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    acknowledge: { type: String },
    filter: { state: true },
  };
  static override styles = [
    base,
    css`
      header { padding: 8px 8px 8px 16px; border-bottom: 1px solid var(--_line); flex-wrap: wrap; }
      header input { flex: 1 1 160px; min-width: 0; max-width: 320px; }
      header .count { flex: 1 0 auto; }
      .row { display: grid; grid-template-columns: 96px minmax(0, 1fr) auto; gap: 4px 16px; padding: 12px 16px; border-bottom: 1px solid var(--_line); border-inline-start: 3px solid transparent; align-items: start; }
      .row:last-child { border-bottom: 0; }
      .row.open { border-inline-start-color: var(--tone); }
      .name { font-size: 16px; line-height: 20px; font-weight: 600; overflow-wrap: anywhere; }
      .resolved .name { font-size: 14px; font-weight: 400; }
      .summary { overflow-wrap: anywhere; }
      .chips { display: flex; flex-wrap: wrap; gap: 4px; margin-top: 4px; }
      .links { display: flex; gap: 16px; margin-top: 4px; }
      .links a { display: inline-flex; gap: 4px; align-items: center; min-height: 24px; }
      .side { display: grid; justify-items: end; align-content: start; gap: 4px; text-align: end; }
      .refused { color: var(--_critical); max-width: 32ch; }
      h2 { font-size: 12px; line-height: 16px; font-weight: 600; color: var(--_muted); padding: 8px 16px; background: var(--_raised); border-bottom: 1px solid var(--_line); }
      .calm { padding: 16px; }
      @media (max-width: 719px) {
        .row { grid-template-columns: minmax(0, 1fr) auto; padding: 12px; }
        .main { grid-column: 1 / -1; grid-row: 2; }
      }
    `,
  ];
  /** Address that acknowledges, with `{id}` in the alert's place. */
  declare acknowledge: string;
  declare filter: string;

  #alerts = new Map<number, Alert>();
  #unlisted = 0;
  /** Acknowledged here, not yet confirmed by the server. */
  #taking = new Map<number, string>();
  #refused = new Map<number, string>();

  constructor() {
    super();
    this.topic = "alerts:all";
    this.acknowledge = "/alerts/{id}/acknowledge/";
    this.filter = "";
  }

  protected override get empty(): boolean {
    return this.#alerts.size === 0;
  }

  protected override start(): void {
    const printed = this.printedState<AlertsState>();
    if (printed && !this.loaded) this.#load(printed);
    const source = this.follow(this.topic, {
      since: printed?.cursor ?? null,
      event: (event) => {
        if (event.type.startsWith("alert.")) this.#put(event.data);
      },
      reset: () => (printed ? this.reload<AlertsState>((state) => this.#load(state)) : this.#history()),
      change: () => {
        if (!this.loaded && source.state === "live") void this.#history();
        this.requestUpdate();
      },
    });
    if (!this.loaded && source.state === "live") void this.#history();
    this.whileConnected(
      shortcuts({
        "/": () => this.renderRoot.querySelector("input")?.focus(),
        j: () => moveFocus(this.shadowRoot!, ".row", 1),
        k: () => moveFocus(this.shadowRoot!, ".row", -1),
        a: () => this.#takeFocused(),
      }),
    );
  }

  #load(state: AlertsState): void {
    this.#alerts = new Map(state.alerts.map((alert) => [alert.id, alert]));
    this.#unlisted = state.unlisted ?? 0;
    this.loaded = true;
    this.requestUpdate();
  }

  // On a page that printed no state, the newest event of each alert is its state.
  async #history(): Promise<Cursor | null> {
    try {
      for (const event of await hub.topic(this.topic).history()) this.#put(event.data);
      this.loaded = true;
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      if ((code ?? 100) >= 100 && code !== 103) this.failure = message ?? String(error);
    }
    return null;
  }

  #put(alert: unknown): void {
    if (!isAlert(alert)) return;
    this.#alerts.set(alert.id, alert);
    if (!open(alert)) this.#taking.delete(alert.id);
    if (alert.status === "resolved") this.#forgetOld();
    this.requestUpdate();
  }

  // A page stays open for days: resolved alerts that it would not list are not kept.
  #forgetOld(): void {
    const resolved = [...this.#alerts.values()].filter((alert) => alert.status === "resolved").sort(byUrgency);
    for (const { id } of resolved.slice(RESOLVED)) {
      this.#alerts.delete(id);
      this.#refused.delete(id);
    }
  }

  async #take(alert: Alert): Promise<void> {
    if (!open(alert) || this.#taking.has(alert.id)) return;
    this.#refused.delete(alert.id);
    this.#taking.set(alert.id, new Date().toISOString());
    this.requestUpdate();
    try {
      this.#put(await post(this.acknowledge.replace("{id}", String(alert.id))));
    } catch (error) {
      this.#refused.set(alert.id, (error as Error).message);
    }
    this.#taking.delete(alert.id);
    this.requestUpdate();
  }

  #takeFocused(): void {
    const row = (this.shadowRoot!.activeElement as HTMLElement | null)?.closest<HTMLElement>(".row");
    const alert = row && this.#alerts.get(Number(row.dataset["id"]));
    if (alert) void this.#take(alert);
  }

  /** The alert as it will be once the server confirms what was done here. */
  #seen(alert: Alert): Alert {
    const at = this.#taking.get(alert.id);
    return at ? { ...alert, acknowledged_by: hub.user?.name ?? "you", acknowledged_at: at } : alert;
  }

  override render(): TemplateResult {
    const trouble = this.trouble();
    if (trouble) return html`<div class="panel">${trouble}</div>`;
    const wanted = this.filter.trim().toLowerCase();
    const all = [...this.#alerts.values()].map((alert) => this.#seen(alert)).sort(byUrgency);
    const shown = all.filter((alert) => matches(alert, wanted));
    const firing = shown.filter(open);
    const taken = shown.filter((alert) => alert.status === "firing" && alert.acknowledged_by);
    const resolved = shown.filter((alert) => alert.status === "resolved");
    return html`<section class="panel" part="alerts" aria-label="Alerts">
      <header class="spread">
        <input type="search" placeholder="Filter  ( / )" aria-label="Filter alerts" .value=${this.filter}
          @input=${(event: Event) => (this.filter = (event.target as HTMLInputElement).value)} @keydown=${this.#escape} />
        <span class="grow count small muted" role="status">${this.loaded ? `${plural(all.filter(open).length, "alert")} open${this.#unlisted ? `, ${number(this.#unlisted)} more not listed` : ""}` : nothing}</span>
        ${this.freshness()}
      </header>
      ${!this.loaded
        ? this.skeleton(6)
        : this.empty
          ? this.nothingYet("No alert has come in", "Point Alertmanager's webhook here, or raise one by hand. This sends a test alert:", this.#example())
          : shown.length === 0
            ? html`<div class="note"><p>None of ${plural(all.length, "alert")} matches “${this.filter}”.</p></div>`
            : html`
                ${firing.length ? this.#list("Firing", firing) : html`<p class="calm">${badge("ok", "ok", wanted ? "Nothing that matches is firing unseen" : "Nothing is firing unseen")}</p>`}
                ${taken.length ? this.#list("Acknowledged", taken) : nothing}
                ${resolved.length ? this.#list("Resolved", resolved) : nothing}
              `}
    </section>`;
  }

  #example(): string {
    const now = new Date().toISOString();
    const alert = { status: "firing", labels: { alertname: "DiskFull", severity: "critical", instance: "db1" }, annotations: { summary: "Disk is 95 % full" }, startsAt: now, endsAt: "0001-01-01T00:00:00Z", fingerprint: "d1" };
    const body = JSON.stringify({ version: "4", status: "firing", receiver: "hub", groupLabels: {}, commonLabels: {}, commonAnnotations: {}, externalURL: "", groupKey: "{}", alerts: [alert] });
    return `curl -H "Authorization: Bearer $HUB_API_KEY" -H "Content-Type: application/json" -d '${body}' ${location.origin}/hooks/alertmanager`;
  }

  #escape = (event: KeyboardEvent): void => {
    if (event.key !== "Escape") return;
    this.filter = "";
    (event.target as HTMLInputElement).blur();
  };

  #list(title: string, alerts: Alert[]): TemplateResult {
    return html`<h2>${title} · ${alerts.length}</h2>
      <ul aria-label=${title}>${repeat(alerts, (alert) => alert.id, (alert) => this.#row(alert))}</ul>`;
  }

  #row(alert: Alert): TemplateResult {
    const severity = severityOf(alert.severity);
    const labels = Object.entries(alert.labels).filter(([name]) => name !== "alertname" && name !== "severity");
    const runbook = safeAddress(alert.runbook_url);
    const source = safeAddress(alert.source_url);
    const fresh = Date.now() - new Date(alert.last_seen_at).getTime() < 3000;
    return html`<li class="row ${severity} ${open(alert) ? "open" : alert.status} ${fresh ? "fresh" : ""}" part="alert" tabindex="-1" data-id=${alert.id}>
      ${alert.status === "resolved" ? badge("ok", "ok", "resolved") : severityBadge(severity)}
      <div class="main">
        <p class="name">${alert.name}</p>
        ${alert.summary || alert.description ? html`<p class="summary">${linked(inline(alert.summary || alert.description))}</p>` : nothing}
        ${labels.length
          ? html`<div class="chips">${labels.map(([name, value]) => html`<span class="chip"><span class="muted">${name}</span>${inline(value)}</span>`)}</div>`
          : nothing}
        ${runbook || source
          ? html`<div class="links small">
              ${runbook ? html`<a href=${runbook} target="_blank" rel="noopener noreferrer">${icon("open")} Runbook</a>` : nothing}
              ${source ? html`<a href=${source} target="_blank" rel="noopener noreferrer">${icon("open")} Source</a>` : nothing}
            </div>`
          : nothing}
      </div>
      ${this.#side(alert)}
    </li>`;
  }

  #side(alert: Alert): TemplateResult {
    const lasted = alert.ends_at ? new Date(alert.ends_at).getTime() - new Date(alert.starts_at).getTime() : 0;
    return html`<div class="side small">
      ${alert.status === "resolved"
        ? html`<span class="muted"><hub-time datetime=${alert.ends_at ?? alert.last_seen_at}></hub-time>, after ${duration(lasted)}</span>`
        : html`<span class="muted">started <hub-time datetime=${alert.starts_at}></hub-time>${alert.count > 1 ? html` · seen ${alert.count} times` : nothing}</span>`}
      ${alert.acknowledged_by
        ? html`<span>${this.#taking.has(alert.id) ? "acknowledging…" : html`acknowledged by <b>${inline(alert.acknowledged_by)}</b>${alert.acknowledged_at ? ` ${minute(new Date(alert.acknowledged_at))}` : nothing}`}</span>`
        : alert.status === "firing"
          ? html`<button title="Tell everyone that you look after it (a). It cannot be taken back." @click=${() => this.#take(alert)}>Acknowledge</button>`
          : nothing}
      ${this.#refused.has(alert.id) ? html`<span class="refused" role="alert">Not acknowledged: ${this.#refused.get(alert.id)}</span>` : nothing}
    </div>`;
  }
}
