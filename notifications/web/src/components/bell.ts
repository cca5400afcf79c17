import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { type Wishes, wish, wishes } from "../announce.js";
import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import { plural } from "../format.js";
import { icon } from "../icons.js";
import { severityBadge } from "../severity.js";
import { base } from "../styles.js";
import { linked } from "../text.js";
import { type Note, noteOf } from "./personal.js";

const KEPT = 50;

/** `<hub-bell>`: what was sent to this user lately, and what may call them away from other work. */
export class HubBell extends HubElement {
  static override properties: PropertyDeclarations = {
    ...HubElement.properties,
    notes: { state: true },
    open: { state: true },
    seen: { state: true },
    wished: { state: true },
  };
  static override styles = [
    base,
    css`
      :host { position: relative; }
      .bell { position: relative; }
      .bell .icon { width: 20px; height: 20px; }
      .count { position: absolute; top: 0; inset-inline-end: 0; min-width: 16px; padding: 0 4px; border-radius: 8px; background: var(--_accent); color: var(--_on-accent); font-size: 11px; line-height: 16px; font-weight: 600; }
      .menu { position: absolute; z-index: 30; inset-inline-end: 0; top: 40px; width: 360px; }
      .list { max-height: min(400px, 60vh); overflow-y: auto; }
      .list li { padding: 12px 16px; border-bottom: 1px solid var(--_line); display: grid; gap: 4px; }
      .list li:last-child { border-bottom: 0; }
      .list p { overflow-wrap: anywhere; }
      h2 { font-size: 14px; line-height: 20px; padding: 12px 16px; border-bottom: 1px solid var(--_line); }
      .wishes { padding: 12px 16px; display: grid; gap: 8px; border-top: 1px solid var(--_line); }
      label { display: flex; gap: 8px; align-items: center; }
      input { min-height: 0; width: 16px; height: 16px; accent-color: var(--_accent); }
      .new { font-weight: 600; }
      @media (max-width: 719px) { .menu { position: fixed; inset-inline: 8px; top: 56px; width: auto; } }
    `,
  ];
  declare notes: Note[];
  declare open: boolean;
  /** Time of the newest note that was looked at, in milliseconds. */
  declare seen: number;
  declare wished: Wishes;

  constructor() {
    super();
    this.notes = [];
    this.open = false;
    this.seen = 0;
    this.wished = wishes();
  }

  get #key(): string {
    return `hub-seen:${hub.user?.id ?? ""}`;
  }

  protected override get empty(): boolean {
    return this.notes.length === 0;
  }

  protected override start(): void {
    if (!hub.user) return;
    this.topic = `#${hub.user.id}`;
    this.seen = Number(localStorage.getItem(this.#key) ?? 0);
    const source = this.follow(this.topic, {
      event: (event) => this.#put([noteOf(event)]),
      reset: () => this.#history(),
      change: () => {
        if (source.state === "live" && !this.loaded) void this.#history();
        this.requestUpdate();
      },
    });
    if (source.state === "live") void this.#history();
    const outside = (event: Event): void => {
      if (this.open && !event.composedPath().includes(this)) this.open = false;
    };
    const looked = (change: StorageEvent): void => {
      if (change.key === this.#key) this.seen = Number(change.newValue ?? 0);
    };
    document.addEventListener("click", outside);
    window.addEventListener("storage", looked);
    this.whileConnected(() => document.removeEventListener("click", outside));
    this.whileConnected(() => window.removeEventListener("storage", looked));
  }

  async #history(): Promise<void> {
    try {
      this.#put((await hub.topic(this.topic).history(KEPT)).map(noteOf));
      this.loaded = true;
    } catch (error) {
      const { code, message } = error as { code?: number; message?: string };
      if (code === 108 || code === 103) this.loaded = true;
      else if ((code ?? 100) >= 100) this.failure = message ?? String(error);
    }
  }

  #put(notes: (Note | null)[]): void {
    const known = new Map(this.notes.map((note) => [note.id, note]));
    for (const note of notes) if (note) known.set(note.id, note);
    this.notes = [...known.values()].sort((one, other) => other.time.getTime() - one.time.getTime()).slice(0, KEPT);
    if (this.open) this.#look();
  }

  #look(): void {
    const newest = this.notes[0]?.time.getTime();
    if (newest) localStorage.setItem(this.#key, String(newest));
  }

  #toggle(): void {
    this.open = !this.open;
    if (this.open) {
      this.#look();
      // What the toasts say stands in the list that opens under them.
      document.dispatchEvent(new Event("hub-notes-read"));
    }
    // The list keeps its marks of what is new until it is closed.
    else this.seen = Number(localStorage.getItem(this.#key) ?? this.seen);
  }

  #escape = (event: KeyboardEvent): void => {
    if (event.key !== "Escape" || !this.open) return;
    event.preventDefault();
    this.#toggle();
    this.renderRoot.querySelector("button")?.focus();
  };

  async #wish(change: Partial<Wishes>): Promise<void> {
    this.wished = await wish(change);
    this.requestUpdate();
  }

  override render(): TemplateResult | typeof nothing {
    if (!hub.user) return nothing;
    const unseen = this.notes.filter((note) => note.time.getTime() > this.seen).length;
    return html`<div @keydown=${this.#escape}>
      <button class="plain bell" part="button" aria-expanded=${this.open} aria-label=${unseen ? `Notifications, ${unseen} new` : "Notifications"}
        @click=${() => this.#toggle()}>
        ${icon("bell")}${unseen && !this.open ? html`<span class="count" part="count" aria-hidden="true">${unseen > 99 ? "99+" : unseen}</span>` : nothing}
      </button>
      <span class="hidden-text" role="status">${unseen && !this.open ? `${plural(unseen, "new notification")}` : nothing}</span>
      ${this.open ? this.#menu() : nothing}
    </div>`;
  }

  #menu(): TemplateResult {
    const trouble = this.trouble();
    return html`<section class="panel menu" part="menu" aria-label="Notifications">
      <h2 class="spread"><span class="grow">For you</span>${this.freshness()}</h2>
      ${trouble
        ?? (!this.loaded
          ? this.skeleton(3)
          : this.empty
            ? this.nothingYet("Nothing was sent to you lately", "What tasks and services publish to your own topic appears here and as a toast:", `publish(user_topic(user), "note", {"title": "Hello"})`)
            : html`<ul class="list" tabindex="0" role="list" aria-label="Notes">${repeat(this.notes, (note) => note.id, (note) => this.#note(note))}</ul>`)}
      <div class="wishes" role="group" aria-label="What may call you">
        <label><input type="checkbox" .checked=${this.wished.sound} @change=${(event: Event) => this.#wish({ sound: (event.target as HTMLInputElement).checked })} /> Sound for critical ones</label>
        <label><input type="checkbox" .checked=${this.wished.desktop} @change=${(event: Event) => this.#wish({ desktop: (event.target as HTMLInputElement).checked })} /> Desktop notifications while this page is hidden</label>
      </div>
    </section>`;
  }

  #note(note: Note): TemplateResult {
    return html`<li part="note">
      <div class="spread"><span class="grow">${severityBadge(note.severity)}</span><hub-time class="small muted" datetime=${note.time.toISOString()}></hub-time></div>
      <p class=${note.time.getTime() > this.seen ? "new" : ""}>${note.address ? html`<a href=${note.address}>${note.title}</a>` : note.title}</p>
      ${note.text ? html`<p class="muted">${linked(note.text)}</p>` : nothing}
    </li>`;
  }
}
