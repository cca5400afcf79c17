import { type PropertyDeclarations, type TemplateResult, css, html, nothing } from "lit";
import { repeat } from "lit/directives/repeat.js";

import { FRESH, announce } from "../announce.js";
import { HubElement } from "../component.js";
import { hub } from "../connection.js";
import { plural } from "../format.js";
import { icon } from "../icons.js";
import { badge } from "../severity.js";
import { base } from "../styles.js";
import { linked } from "../text.js";
import { type Note, noteOf } from "./personal.js";

const VISIBLE = 3;
const SHOWN_FOR = 8000;
/** Critical ones stay until they are closed, and on an unattended page nobody closes them. */
const KEPT = 20;

/** `<hub-toasts>`: what was just sent to this user; critical ones stay until they are closed. */
export class HubToasts extends HubElement {
  static override properties: PropertyDeclarations = { ...HubElement.properties, notes: { state: true } };
  static override styles = [
    base,
    css`
      :host { position: fixed; z-index: 40; inset-inline-end: 16px; bottom: 16px; width: min(360px, calc(100vw - 32px)); pointer-events: none; }
      .stack { display: grid; gap: 8px; }
      .stack + .stack { margin-top: 8px; }
      .toast { pointer-events: auto; display: grid; grid-template-columns: 1fr auto; gap: 4px 8px; padding: 12px 8px 12px 16px; border-inline-start: 3px solid var(--tone); background: var(--_surface); box-shadow: 0 4px 16px rgb(0 0 0 / 18%); }
      .toast p { overflow-wrap: anywhere; grid-column: 1; }
      .toast button { grid-row: 1; grid-column: 2; min-height: 24px; }
      .rest { pointer-events: auto; padding: 4px 16px; margin-top: 8px; }
      @media (max-width: 719px) { :host { bottom: calc(72px + env(safe-area-inset-bottom)); } }
    `,
  ];
  declare notes: Note[];

  #held = false;
  #timers = new Map<string, number>();

  constructor() {
    super();
    this.notes = [];
  }

  protected override start(): void {
    this.loaded = true;
    const personal = hub.personal;
    if (!personal) return;
    this.whileConnected(
      personal.on("*", (event) => {
        const note = noteOf(event);
        // What was sent while nobody was here is in the bell's list.
        if (!note || Date.now() - note.time.getTime() > FRESH) return;
        announce({ ...note, url: note.address ?? "" });
        this.notes = [note, ...this.notes];
        if (note.severity !== "critical") this.#expire(note);
        this.#limit();
      }),
    );
    const read = (): void => [...this.notes].forEach((note) => this.#close(note));
    document.addEventListener("hub-notes-read", read);
    this.whileConnected(() => document.removeEventListener("hub-notes-read", read));
    const escape = (event: KeyboardEvent): void => {
      if (event.key === "Escape" && !event.defaultPrevented && this.notes[0]) this.#close(this.notes[0]);
    };
    document.addEventListener("keydown", escape);
    this.whileConnected(() => document.removeEventListener("keydown", escape));
  }

  // Time in which the page is hidden or the pointer rests on a toast does not count.
  #expire(note: Note): void {
    const timer = window.setTimeout(() => {
      if (document.hidden || this.#held) this.#expire(note);
      else this.#close(note);
    }, SHOWN_FOR);
    this.#timers.set(note.id, timer);
  }

  #limit(): void {
    if (this.notes.length <= KEPT) return;
    const others = this.notes.filter((note) => note.severity !== "critical");
    this.#close((others.at(-1) ?? this.notes.at(-1))!);
  }

  #close(note: Note): void {
    window.clearTimeout(this.#timers.get(note.id));
    this.#timers.delete(note.id);
    this.notes = this.notes.filter((other) => other.id !== note.id);
  }

  override render(): TemplateResult {
    const visible = this.notes.slice(0, VISIBLE);
    const rest = this.notes.length - visible.length;
    const critical = visible.filter((note) => note.severity === "critical");
    const others = visible.filter((note) => note.severity !== "critical");
    const hold = (held: boolean) => () => (this.#held = held);
    return html`<div part="toasts" @pointerenter=${hold(true)} @pointerleave=${hold(false)} @focusin=${hold(true)} @focusout=${hold(false)}>
      <div class="stack" role="alert">${this.#list(critical)}</div>
      <div class="stack" role="status">${this.#list(others)}</div>
      ${rest > 0 ? html`<p class="panel rest small">${plural(rest, "earlier one", "earlier ones")}: see the bell</p>` : nothing}
    </div>`;
  }

  #list(notes: Note[]): unknown {
    return repeat(notes, (note) => note.id, (note) => html`<div class="panel toast ${note.severity}" part="toast">
      ${badge(note.severity, note.severity, `${note.severity}: ${note.title}`)}
      ${note.text ? html`<p>${linked(note.text)}</p>` : nothing}
      ${note.address ? html`<p><a href=${note.address}>Open</a></p>` : nothing}
      <button class="plain" aria-label="Close" @click=${() => this.#close(note)}>${icon("close")}</button>
    </div>`);
  }
}
